"""What the aggregation studies print: how many instances are there, with errors, as tables and a sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from aggregation_models import Instances, condition_of
from onbrand.evaluation import contact_sheet
from onbrand.evaluation.detection import Box, Detection, Wanted, best_iou, count_scores
from onbrand.evaluation.layout_pictures import with_boxes
from PIL import Image

PAIR = ("shapes", "colours")
COUNTS = (2, 3, 4, 5, 6)
SEED, MIN_SIDE = 62, 1 / 8


def wanted_of(asked: Sequence[Instances]) -> list[list[Wanted]]:
    return [[Wanted(kind, box, colour) for kind, colour, box in one] for one in asked]


def hits(detections: Sequence[Sequence[Detection]], asked: Sequence[Instances], what: str) -> np.ndarray:
    """Of every layout how many instances are there and how many were asked for, (N, 2).

    what: "all" asks for place (IoU above .5), kind and colour; "kind" for place and kind; "colour" for
    something of the colour over the centre of the box.
    """
    rows = []
    for found, one in zip(detections, asked, strict=True):
        kept = [i for i in one if min(i[2][2] - i[2][0], i[2][3] - i[2][1]) >= MIN_SIDE]
        if what == "colour":
            there = [any(d.colour == colour and _over(d.box, box) for d in found) for _, colour, box in kept]
        else:
            wanted = [Wanted(kind, box, colour if what == "all" else None) for kind, colour, box in kept]
            there = [best_iou(one, found) > 0.5 for one in wanted]
        rows.append((sum(there), len(kept)))
    return np.array(rows, dtype=float)


def _over(found: Box, box: Box) -> bool:
    """Whether a box covers the centre of another."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return found[0] <= x <= found[2] and found[1] <= y <= found[3]


def rate(rows: np.ndarray) -> tuple[float, float]:
    """Share of instances, and its standard error where those of one picture belong together."""
    total, n = rows.sum(0), len(rows)
    share = total[0] / total[1]
    left = rows[:, 0] - share * rows[:, 1]
    return float(share), float(math.sqrt((left**2).sum() * n / (n - 1)) / total[1])


def gap(rows: np.ndarray, baseline: np.ndarray) -> tuple[float, float]:
    """Difference of two shares on the same layouts, and its paired standard error."""
    return rate(np.stack([rows[:, 0] - baseline[:, 0], rows[:, 1]], axis=1))


def percent(value: float, error: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} ± {100 * error:.1f} %"


def table(found: dict[str, Any], asked: Sequence[Instances], baseline: str | None) -> str:
    """Markdown: success, its difference from the baseline, what was right, mean IoU, seconds and calls."""
    reference = None if baseline is None else hits(found[baseline]["detections"], asked, "all")
    head = (
        "way", "success", "less the first", "place and kind", "colour there", "mIoU", "CPU ms", "calls",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, line in found.items():
        rows = {what: hits(line["detections"], asked, what) for what in ("all", "kind", "colour")}
        scores = count_scores(line["detections"], wanted_of(asked), min_side=MIN_SIDE).values()
        mean_iou = sum(s.mean_iou * s.n for s in scores) / sum(s.n for s in scores)
        apart = "" if reference is None or name == baseline else percent(*gap(rows["all"], reference), "+")
        cost = f"{1000 * line['seconds']:.0f} | {line['calls']}" if line["calls"] else "|"
        shares = [percent(*rate(rows[what])) for what in ("all", "kind", "colour")]
        lines.append(
            f"| {name} | {shares[0]} | {apart} | {shares[1]} | {shares[2]} | {mean_iou:.3f} | {cost} |"
        )
    return "\n".join(lines) + "\n"


def table_by_count(found: dict[str, Any], asked: Sequence[Instances]) -> str:
    """Markdown: success and mean IoU by the number of instances."""
    head = " | ".join(f"{count}" for count in COUNTS)
    lines = [f"| way | {head} |", "|---" + "|---:" * len(COUNTS) + "|"]
    for name, line in found.items():
        scores = count_scores(line["detections"], wanted_of(asked), min_side=MIN_SIDE)
        cells = [f"{100 * scores[c].success:.1f} %, {scores[c].mean_iou:.3f}" for c in COUNTS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def sheet(found: dict[str, list[Image.Image]], asked: Sequence[Instances], *, first: int) -> Image.Image:
    """Conditions and pictures: a row a layout, with the boxes asked for."""
    shown, captions = [], []
    for i, one in enumerate(asked):
        boxes = [(f"{colour} {kind}", box) for kind, colour, box in one]
        for model in PAIR:
            shown.append(condition_of(model, one, seed=(SEED, first + i)))
            captions.append(f"shown to {model}")
        for name, pictures in found.items():
            shown.append(with_boxes(pictures[i], boxes) if name == "drawn by the studio" else pictures[i])
            captions.append(name)
    return contact_sheet(shown, captions=captions, columns=len(found) + 2, tile=128)
