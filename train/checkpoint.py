"""Checkpoints that are either complete or not there: written beside, renamed, rotated after the save."""

from __future__ import annotations

import shutil
from pathlib import Path

from accelerate import Accelerator

FOLDER = "checkpoints"


def save_checkpoint(accelerator: Accelerator, run: Path, step: int, *, keep: int) -> Path:
    """Saves the full training state as checkpoints/step_N on all processes, then drops all but the newest
    `keep`."""
    final = run / FOLDER / f"step_{step}"
    beside = final.with_name(f"{final.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(beside))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        for old in checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in (run / FOLDER).glob("step_*") if path.name[5:].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))
