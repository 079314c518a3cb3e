"""Do the things asked for stand where a layout wants them? Boxes found by a detector against the layout's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from rich.table import Table
from rich.text import Text

Box = tuple[float, float, float, float]
THRESHOLD = 0.5
# 150 and 300 pixels a side at 512, as shares of the picture's area
SMALL, LARGE = 0.086, 0.34
SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class Detection:
    """Something found in a picture: box (x0, y0, x1, y1) in fractions of its width and height, from the
    upper left; score in [0, 1]; colour None where the detector tells none."""

    label: str
    box: Box
    score: float
    colour: str | None = None


@dataclass(frozen=True)
class Wanted:
    """Something asked for: a detector's label, a box in fractions, and a colour if it matters."""

    label: str
    box: Box
    colour: str | None = None


class Detector(Protocol):
    """What finds things in pictures; labels: all that it can find."""

    labels: Sequence[str]

    def __call__(self, pictures: Sequence[Image.Image]) -> list[list[Detection]]:
        """The detections of each picture."""
        ...


class LayoutScore(NamedTuple):
    """Of n instances: the share with an IoU above .5, its standard error, and the mean IoU."""

    n: int
    success: float
    standard_error: float
    mean_iou: float


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1) in the same unit, in [0, 1].

    Raises ValueError on a box whose corners are not in order.
    """
    for box in (first, second):
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"box must be x0, y0, x1, y1 with x0 < x1 and y0 < y1, got {tuple(box)}")
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (area(first) + area(second) - shared)


def area(box: Box) -> float:
    """Width times height."""
    return (box[2] - box[0]) * (box[3] - box[1])


def size_bin(box: Box) -> str:
    """`small` below 8.6 % of the picture's area, `large` above 34 %, else `medium`; box in fractions."""
    share = area(box)
    return "small" if share < SMALL else "large" if share > LARGE else "medium"


def best_iou(wanted: Wanted, detections: Sequence[Detection], *, min_score: float = 0.0) -> float:
    """The largest IoU of a detection with the label asked for, 0 where none is of the colour asked for.

    A detection that tells no colour is held to be of the right one.
    """
    return max(
        (
            iou(wanted.box, found.box)
            for found in detections
            if found.label == wanted.label
            and found.score >= min_score
            and (None in (wanted.colour, found.colour) or wanted.colour == found.colour)
        ),
        default=0.0,
    )


def success_rate(ious: Sequence[float], *, threshold: float = THRESHOLD) -> float:
    """The share of instances whose IoU is above the threshold.

    Raises ValueError on none.
    """
    if not len(ious):
        raise ValueError("ious must be at least one, got none")
    return float(np.mean(np.asarray(ious) > threshold))


def wanted_of(layout: Any, labels: Sequence[str], *, colours: Sequence[str] = ()) -> list[Wanted]:
    """What a layout asks of a detector: the label and colour that its concepts' words name.

    layout: with `.boxes`, pairs of a concept and its box, and `.unit`. A concept such as "red striped mug"
    has the label mug and, where red is among the colours, that colour; of labels the longest counts.
    Raises ValueError on a concept without a label, and boxes that are not in fractions.
    """
    if layout.unit != "fraction":
        raise ValueError(f"unit of a layout to be scored must be fraction, got {layout.unit!r}")
    found = []
    for concept, box in layout.boxes:
        named = [label for label in labels if _names(concept, label)]
        if not named:
            raise ValueError(f"concept must name one of {', '.join(labels)}, got {concept!r}")
        colour = next((colour for colour in colours if _names(concept, colour)), None)
        found.append(Wanted(max(named, key=len), tuple(box), colour))
    return found


def layout_scores(
    detections: Sequence[Sequence[Detection]],
    wanted: Sequence[Sequence[Wanted]],
    *,
    min_score: float = 0.0,
    threshold: float = THRESHOLD,
) -> dict[str, LayoutScore]:
    """How often things stand where they were asked for, over all instances and by the size of their boxes.

    detections, wanted: a list a picture, in the same order. Keys: all, and of small, medium and large those
    that occur. Raises ValueError on different lengths, and if nothing is wanted.
    """
    ious: dict[str, list[float]] = {name: [] for name in ("all", *SIZES)}
    for _, one, value in _found_of(detections, wanted, min_score=min_score):
        ious["all"].append(value)
        ious[size_bin(one.box)].append(value)
    return {name: _score(values, threshold) for name, values in ious.items() if values}


def count_scores(
    detections: Sequence[Sequence[Detection]],
    wanted: Sequence[Sequence[Wanted]],
    *,
    min_side: float = 0.0,
    min_score: float = 0.0,
    threshold: float = THRESHOLD,
) -> dict[int, LayoutScore]:
    """How often things stand where they were asked for, by how many a picture was asked for.

    detections, wanted: a list a picture, in the same order. min_side: instances whose box is narrower or
    lower, in fractions, are left out; they still count among the picture's. Keys: the numbers of instances,
    ascending. Raises ValueError on different lengths, and if nothing is wanted or all is left out.
    Source: METHODS 5; the instance success rate and mIoU of COCO-MIG.
    """
    ious: dict[int, list[float]] = {}
    for count, one, value in _found_of(detections, wanted, min_score=min_score):
        if min(one.box[2] - one.box[0], one.box[3] - one.box[1]) >= min_side:
            ious.setdefault(count, []).append(value)
    if not ious:
        raise ValueError(f"wanted must hold an instance of at least min_side {min_side}, got none")
    return {count: _score(ious[count], threshold) for count in sorted(ious)}


def layout_table(scores: Mapping[str, Mapping[str, LayoutScore]], *, title: str = "Layouts") -> Table:
    """Success rate and mean IoU, a row a method: scores by method, as `layout_scores` gives them."""
    table = Table(title=Text(title), caption=Text("success: IoU above .5; below it the mean IoU"))
    table.add_column("method")
    sizes = [name for name in ("all", *SIZES) if any(name in row for row in scores.values())]
    for name in sizes:
        table.add_column(name, justify="right")
    for method, row in scores.items():
        table.add_row(Text(method), *(_cell(row.get(name)) for name in sizes))
    return table


def _found_of(
    detections: Sequence[Sequence[Detection]], wanted: Sequence[Sequence[Wanted]], *, min_score: float
) -> list[tuple[int, Wanted, float]]:
    """Of every instance how many its picture was asked for, what was asked for, and the best IoU found."""
    if len(detections) != len(wanted):
        raise ValueError(
            f"detections must be a list for each of {len(wanted)} pictures asked for, got {len(detections)}"
        )
    found = [
        (len(asked), one, best_iou(one, there, min_score=min_score))
        for there, asked in zip(detections, wanted, strict=True)
        for one in asked
    ]
    if not found:
        raise ValueError("wanted must hold at least one instance, got none")
    return found


def _names(concept: str, label: str) -> bool:
    """Whether a concept's words hold a label's in a row, capitals apart."""
    words, wanted = concept.lower().split(), label.lower().split()
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words)))


def _score(values: list[float], threshold: float) -> LayoutScore:
    rate, n = success_rate(values, threshold=threshold), len(values)
    return LayoutScore(n, rate, math.sqrt(rate * (1 - rate) / n), float(np.mean(values)))


def _cell(score: LayoutScore | None) -> str:
    if score is None:
        return ""
    return f"{score.success:.1%} ± {score.standard_error:.1%}\n{score.mean_iou:.3f} (n = {score.n})"
