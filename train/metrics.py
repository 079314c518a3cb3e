"""Running loss means, whole, inside and outside the offset range, and per class."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

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

    def add(self, per_sample: torch.Tensor, timesteps: torch.Tensor, class_ids: torch.Tensor) -> None:
        outside = (timesteps < self.offset_from).long()
        groups = torch.cat([torch.zeros_like(class_ids), 1 + outside, 3 + class_ids])
        values = torch.stack([per_sample, torch.ones_like(per_sample)]).repeat(1, 3)
        self.sums.index_add_(1, groups, values)

    def restart_clock(self) -> None:
        """Leaves what happened since the last call (a save, a preview) out of the pace."""
        self.since = time.perf_counter()

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The mean of every group that saw a sample since the last call, over all processes; starts anew.

        With it the pace, `images_per_second`, of all processes together.
        """
        sums, counts = accelerator.reduce(self.sums, reduction="sum").tolist()
        elapsed = time.perf_counter() - self.since
        means = {name: s / n for name, s, n in zip(self.names, sums, counts, strict=True) if n}
        means["images_per_second"] = counts[0] / elapsed
        self.restart_clock()
        self.sums.zero_()
        return means


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


def rewind_metrics(run: Path, step: int) -> None:
    """Drops what an interrupted run logged after the checkpoint it resumes from."""
    if not (run / METRICS).exists():
        return
    rows = read_metrics(run, up_to=step)
    beside = run / f"{METRICS}.partial"
    beside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    beside.replace(run / METRICS)
