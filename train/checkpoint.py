"""Checkpoints that are either complete or not there: written beside, renamed, rotated after the save."""

from __future__ import annotations

import shutil
from pathlib import Path

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file

FOLDER = "checkpoints"
AVERAGE = "average.safetensors"


def save_checkpoint(
    accelerator: Accelerator, run: Path, step: int, *, average: EMAModel | None, keep: int
) -> Path:
    """Saves the full training state as checkpoints/step_N on all processes, then drops all but the newest
    `keep`."""
    final = run / FOLDER / f"step_{step}"
    beside = final.with_name(f"{final.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(beside))
    if average and accelerator.is_main_process:
        weights = {str(i): weight.contiguous() for i, weight in enumerate(average.shadow_params)}
        save_file(weights, beside / AVERAGE, metadata={"optimization_step": str(average.optimization_step)})
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        for old in checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_average(average: EMAModel, checkpoint: Path) -> None:
    """Puts the saved average back, on the device where it is now."""
    with safe_open(checkpoint / AVERAGE, framework="pt") as file:
        average.optimization_step = int(file.metadata()["optimization_step"])
        for i, weight in enumerate(average.shadow_params):
            weight.copy_(file.get_tensor(str(i)))


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in (run / FOLDER).glob("step_*") if path.name[5:].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step a checkpoint was saved after."""
    return int(checkpoint.name.removeprefix("step_"))
