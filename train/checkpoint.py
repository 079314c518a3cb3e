"""Checkpoints that are either complete or not there: written beside, renamed, rotated after the save."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from ..whole_file import settle

FOLDER = "checkpoints"
WEIGHTS = "model.safetensors"
AVERAGE = "average.safetensors"
MANIFEST = "manifest.json"  # file -> size and CRC-32: what a complete checkpoint holds
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def save_checkpoint(
    accelerator: Accelerator,
    run: Path,
    step: int,
    *,
    average: Mapping[str, torch.Tensor] | None,
    average_steps: int = 0,
    keep: int,
    held_out: Mapping[int, float] | None = None,
) -> Path:
    """Saves the full training state as checkpoints/step_N, on all processes together.

    average: the averaged weights by name; held_out: losses by step. Then drops all but the newest `keep` and
    the one with the lowest held-out loss.
    Raises OSError, with nothing lost that was saved before, if it cannot be written.
    """
    final = run / FOLDER / f"step_{step}"
    beside = final.with_name(f"{final.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    error = ""
    try:
        accelerator.save_state(str(beside))
        if average is not None and accelerator.is_main_process:
            save_file(dict(average), beside / AVERAGE, metadata={"optimization_step": str(average_steps)})
    # a full disk comes as OSError, RuntimeError or an error of the library's own
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"
    errors = [found for found in gather_object([error]) if found]
    if not errors and accelerator.is_main_process:
        try:
            (beside / MANIFEST).write_text(json.dumps(contents(beside), indent=1))
            settle(beside)
        except OSError as problem:
            errors = [str(problem)]
    if errors := [found for found in gather_object(errors) if found]:
        size = sum(file.stat().st_size for file in beside.rglob("*") if file.is_file())
        free = shutil.disk_usage(run).free
        accelerator.wait_for_everyone()
        shutil.rmtree(beside, ignore_errors=True)
        raise OSError(
            f"checkpoint {final} must be written whole, got {errors[0]} after {size / 2**20:.0f} MiB with "
            f"{free / 2**20:.0f} MiB free; what was saved before is untouched"
        )
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        for old in superseded(checkpoints(run), held_out or {}, newest=step, keep=keep):
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def superseded(found: list[Path], held_out: Mapping[int, float], *, newest: int, keep: int) -> list[Path]:
    """The checkpoints that are neither among the `keep` up to step `newest` nor the best by held-out loss.

    Later ones are left from before a resume that could not use them.
    """
    current = [checkpoint for checkpoint in found if step_of(checkpoint) <= newest]
    judged = [
        checkpoint for checkpoint in current if math.isfinite(held_out.get(step_of(checkpoint), math.nan))
    ]
    best = min(judged, key=lambda checkpoint: held_out[step_of(checkpoint)], default=None)
    return [checkpoint for checkpoint in found if checkpoint not in current[-keep:] and checkpoint != best]


def contents(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file in a folder but its manifest."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {file.relative_to(folder).as_posix(): [file.stat().st_size, _crc(file)] for file in files}


def _crc(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 24):
            value = zlib.crc32(block, value)
    return value


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files, "" if nothing is."""
    try:
        promised = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, (size, crc) in promised.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _crc(file) != crc:
            return f"{name} has changed since it was written"
    return ""


def newest_complete(
    accelerator: Accelerator, run: Path, *, warn: Callable[[str], None] = lambda text: None
) -> Path | None:
    """The newest undamaged checkpoint, the same on all processes; `warn` is told of each one skipped.

    Raises ValueError if there are checkpoints and all are damaged: a run never starts anew by itself.
    """
    found = checkpoints(run)
    choice: list[Any] = [None, ""]
    if accelerator.is_main_process:
        for left in (run / FOLDER).glob("step_*.partial"):  # by a save that was killed
            shutil.rmtree(left)
        for checkpoint in reversed(found):
            reason = damage(checkpoint)
            if not reason:
                choice = [checkpoint, ""]
                break
            warn(f"checkpoint {checkpoint} is skipped: {reason}")
            choice = [None, reason]
    checkpoint, reason = broadcast_object_list(choice)
    if reason:
        raise ValueError(
            f"{run / FOLDER} must hold a complete checkpoint to go on from, got {len(found)} damaged "
            f"(the oldest: {reason}); delete them to start the training anew"
        )
    return checkpoint


def save_by_name(accelerator: Accelerator, trained: Mapping[str, torch.nn.Parameter]) -> None:
    """From now on checkpoints hold the trained weights alone, by name, whatever they are wrapped in.

    So another number of processes can go on from them; frozen weights come from the base, whose hash is
    kept. Sharded states are written by their own library, whole.
    """
    if accelerator.distributed_type in SHARDED:
        return

    def save(models: list, states: list, folder: str) -> None:
        if accelerator.is_main_process:
            weights = {name: weight.detach().cpu().contiguous() for name, weight in trained.items()}
            save_file(weights, Path(folder) / WEIGHTS)
        states.clear()

    @torch.no_grad()
    def load(models: list, folder: str) -> None:
        weights = load_file(Path(folder) / WEIGHTS)
        if set(weights) != set(trained):
            raise ValueError(
                f"{folder} must hold the weights that are trained, got {len(weights)} of {len(trained)}"
            )
        for name, weight in trained.items():
            weight.copy_(weights[name])
        models.clear()

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def load_average(average: EMAModel, checkpoint: Path, names: list[str]) -> None:
    """Puts the saved average back, on the device where it is now."""
    with safe_open(checkpoint / AVERAGE, framework="pt") as file:
        average.optimization_step = int(file.metadata()["optimization_step"])
        for name, weight in zip(names, average.shadow_params, strict=True):
            saved = file.get_tensor(name).to(weight.device)
            if isinstance(weight, DTensor):
                saved = distribute_tensor(saved, weight.device_mesh, weight.placements)
            weight.copy_(saved)


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    found = [path for path in (run / FOLDER).glob("step_*") if path.name[5:].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step a checkpoint was saved after."""
    return int(checkpoint.name.removeprefix("step_"))
