"""Running means of loss and gradient norm; pace and memory; the lines of metrics.jsonl."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from ..whole_file import write_whole

METRICS = "metrics.jsonl"


class LossMeter:
    """Sums of per-sample losses on the device; nothing is read back until `means` is called.

    Groups: 0 all, 1 inside the offset range, 2 outside, 3 + c class c.
    """

    def __init__(self, class_names: list[str], *, offset_from: int, device: torch.device) -> None:
        self.names = [
            "loss",
            "loss_offset_range",
            "loss_elsewhere",
            *(f"loss_class/{name}" for name in class_names),
        ]
        self.offset_from = offset_from
        self.since = time.perf_counter()
        self.sums = torch.zeros(2, len(self.names), device=device)
        self.norms = torch.zeros(2, device=device)  # sum and count

    def add(self, per_sample: torch.Tensor, timesteps: torch.Tensor, class_ids: torch.Tensor) -> None:
        outside = (timesteps < self.offset_from).long()
        groups = torch.cat([torch.zeros_like(class_ids), 1 + outside, 3 + class_ids])
        values = torch.stack([per_sample, torch.ones_like(per_sample)]).repeat(1, 3)
        self.sums.index_add_(1, groups, values)

    def add_norm(self, norm: torch.Tensor | float | None, *, may_overflow: bool = False) -> None:
        """A step's gradient norm before clipping; None where the library keeps it to itself.

        may_overflow: fp16's scaler skips a step whose norm is infinite, so it is left out.
        """
        if norm is not None:
            whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
            norm = torch.as_tensor(whole, device=self.norms.device).detach().float()
            counted = torch.isfinite(norm) if may_overflow else torch.ones_like(norm, dtype=torch.bool)
            self.norms += torch.stack([norm.where(counted, torch.zeros_like(norm)), counted.float()])

    def restart_clock(self) -> None:
        """Leaves what happened since the last call (a save, a preview) out of the pace."""
        self.since = time.perf_counter()

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The mean of every group that saw a sample since the last call, over all processes; starts anew.

        With it the pace, `images_per_second`, of all processes together, the mean `grad_norm` and this
        process's peak `memory_gib`.
        """
        sums, counts = accelerator.reduce(self.sums, reduction="sum").tolist()
        elapsed = time.perf_counter() - self.since
        means = {name: s / n for name, s, n in zip(self.names, sums, counts, strict=True) if n}
        means["images_per_second"] = counts[0] / elapsed
        total, steps = self.norms.tolist()
        if steps:
            means["grad_norm"] = total / steps
        means["memory_gib"] = peak_memory(self.sums.device) / 2**30
        self.restart_clock()
        self.sums.zero_()
        self.norms.zero_()
        return means


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak so far: of the GPU's memory, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def append_metrics(run: Path, values: dict[str, Any]) -> None:
    """One line of metrics.jsonl."""
    with (run / METRICS).open("a") as lines:
        lines.write(
            json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}) + "\n"
        )


def read_metrics(run: Path, *, up_to: int | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, those of steps after `up_to` left out."""
    if not (run / METRICS).exists():
        return []
    # a line without its end was cut off with the process that wrote it
    lines = (run / METRICS).read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if up_to is None or row["step"] <= up_to]


def held_out_losses(run: Path) -> dict[int, float]:
    """The held-out loss of every step that was validated."""
    return {row["step"]: row["held_out_loss"] for row in read_metrics(run) if "held_out_loss" in row}


def rewind_metrics(run: Path, step: int) -> None:
    """Drops what an interrupted run logged after the checkpoint it resumes from."""
    if not (run / METRICS).exists():
        return
    rows = read_metrics(run, up_to=step)
    write_whole("".join(json.dumps(row) + "\n" for row in rows), run / METRICS)
