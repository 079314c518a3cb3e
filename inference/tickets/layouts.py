"""Where concepts are to stand: boxes on a picture, a JSON file of them, and the grid of blocks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

UNITS = ("fraction", "latent", "pixel")
FRESH, WINNERS = "fresh", "winners"
FREE = -1
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Layout:
    """Boxes (x0, y0, x1, y1) of concepts, from the picture's upper left, and what lies around them.

    unit: of the boxes: "fraction" of the picture's width and height, "latent" or "pixel". background: "fresh"
    noise, the background's own "winners", or a concept such as "sky".
    Raises ValueError on an unknown unit, no box, and boxes that are not four numbers in order.
    """

    boxes: tuple[tuple[str, Box], ...]
    background: str = FRESH
    unit: str = "fraction"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {self.unit!r}")
        if not self.boxes:
            raise ValueError("boxes must be at least one, got none")
        checked = tuple((concept, _checked(concept, box)) for concept, box in self.boxes)
        object.__setattr__(self, "boxes", checked)

    @classmethod
    def load(cls, path: str | Path) -> Layout:
        """The layout of a JSON file: {"unit", "boxes": [{"concept", "box": [x0, y0, x1, y1]}], "background"}.

        Raises ValueError, with the file's name, on anything else.
        """
        try:
            return cls.of(json.loads(Path(path).read_text()))
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            why = f"it lacks {problem}" if isinstance(problem, KeyError) else problem
            raise ValueError(
                f"layout must be a JSON file with unit and boxes, got {path}: {why}"
            ) from problem

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Layout:
        """The layout that `to_dict` gave."""
        unknown = sorted(set(stored) - {"unit", "boxes", "background"})
        if unknown:
            raise ValueError(f"keys must be among unit, boxes, background, got {unknown[0]!r}")
        boxes = tuple((entry["concept"], entry["box"]) for entry in stored["boxes"])
        return cls(boxes, stored.get("background", FRESH), stored.get("unit", "fraction"))

    def to_dict(self) -> dict[str, Any]:
        """As the JSON file holds it."""
        boxes = [{"concept": concept, "box": list(box)} for concept, box in self.boxes]
        return {"unit": self.unit, "boxes": boxes, "background": self.background}

    def save(self, path: str | Path) -> None:
        """Writes the JSON file that `load` reads."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @property
    def concepts(self) -> list[str]:
        """Every concept once, the background's last."""
        own = [concept for concept, _ in self.boxes]
        return list(dict.fromkeys(own + [self.background] * (self.background not in (FRESH, WINNERS))))

    def fractions(self, size: tuple[int, int], *, pixels_per_latent: int = 8) -> list[tuple[str, Box]]:
        """The boxes in fractions of a picture whose latents have this height and width.

        Raises ValueError on a box outside the picture.
        """
        height, width = size
        units = {
            "fraction": (1, 1),
            "latent": (width, height),
            "pixel": (width * pixels_per_latent, height * pixels_per_latent),
        }
        wide, high = units[self.unit]
        for concept, box in self.boxes:
            if box[0] < 0 or box[1] < 0 or box[2] > wide or box[3] > high:
                raise ValueError(
                    f"box of {concept!r} must lie within 0, 0, {wide}, {high} ({self.unit}), got {_told(box)}"
                )
        return [(name, (x0 / wide, y0 / high, x1 / wide, y1 / high)) for name, (x0, y0, x1, y1) in self.boxes]

    def regions(self, size: tuple[int, int], *, block: int, pixels_per_latent: int = 8) -> Tensor:
        """Which box each block belongs to, (rows, columns) long: its index, or FREE.

        size: height and width of the latents; block: latents a side. A box's edges are snapped to the
        nearest between blocks; where boxes overlap the smaller one wins, of equal ones the later.
        Raises ValueError on a box outside the picture and on one that is left without a block.
        """
        height, width = size
        grid = torch.full((height // block, width // block), FREE)
        self.fractions(size, pixels_per_latent=pixels_per_latent)  # each within the picture
        scale = {"fraction": (width, height), "latent": (1, 1), "pixel": (1 / pixels_per_latent,) * 2}
        x_scale, y_scale = scale[self.unit]
        for index in sorted(range(len(self.boxes)), key=lambda i: -_area(self.boxes[i][1])):
            concept, (x0, y0, x1, y1) = self.boxes[index]
            left, right = (math.floor(x * x_scale / block + 0.5) for x in (x0, x1))
            top, bottom = (math.floor(y * y_scale / block + 0.5) for y in (y0, y1))
            grid[top:bottom, left:right] = index
            if left == right or top == bottom:
                sides = ", ".join(f"{block / s:g}" for s in (x_scale, y_scale))
                raise ValueError(
                    f"box of {concept!r} must hold a block of {sides} ({self.unit}) after snapping to their "
                    f"grid, got {_told((x0, y0, x1, y1))}"
                )
        for index, (concept, box) in enumerate(self.boxes):
            if not (grid == index).any():
                raise ValueError(
                    f"box of {concept!r} must keep a block beside smaller boxes, got {_told(box)} under them"
                )
        return grid


def covered(
    layout: Layout, size: tuple[int, int], *, block: int, pixels_per_latent: int
) -> dict[str, Tensor]:
    """The region of each concept, (rows, columns) bool, and under WINNERS the background's if it has tickets.

    A concept's boxes are one region; one that is the background too has the free blocks as well.
    Raises ValueError as `Layout.regions`.
    """
    owners = layout.regions(size, block=block, pixels_per_latent=pixels_per_latent)
    names = {index: concept for index, (concept, _) in enumerate(layout.boxes)}
    if layout.background != FRESH:
        names[FREE] = layout.background
    regions: dict[str, Tensor] = {}
    for index, name in names.items():
        regions[name] = regions.get(name, torch.zeros_like(owners, dtype=torch.bool)) | (owners == index)
    return regions


def _checked(concept: Any, box: Any) -> Box:
    if not isinstance(concept, str) or not concept.strip():
        raise ValueError(f"concept must be text, got {concept!r}")
    right = len(box) == 4 and all(isinstance(x, int | float) and math.isfinite(x) for x in box)
    if not right or not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(
            f"box of {concept!r} must be x0, y0, x1, y1 with x0 < x1 and y0 < y1, got {_told(box)}"
        )
    return tuple(box)  # type: ignore[return-value]


def _told(box: Any) -> str:
    return ", ".join(str(x) for x in box)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
