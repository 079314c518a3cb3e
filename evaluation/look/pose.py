"""How a product stands: its outline against those of the catalogue's own products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist

from .box import Box
from .packed import pack, unpack

GRID = 24  # an outline's pixels a side
LEVELS = 16  # of coverage
BLOCK = 1000  # outlines compared at a time
FINE = 4  # sampled so many times finer, for even coverage


def outline(mask: np.ndarray, box: Box) -> np.ndarray:
    """The product's mask in the square around its box, (24, 24) uint8, coverage in sixteenths.

    mask: (H, W) bool; box: the product's. Place and size drop out, the box's proportions stay.
    """
    side = max(box.width, box.height)
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    square = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    fine = Image.fromarray(mask).convert("L").transform(
        (GRID * FINE, GRID * FINE), Image.Transform.EXTENT, square, Image.Resampling.NEAREST
    )  # fmt: skip
    return np.asarray(fine.reduce(FINE)) // (256 // LEVELS)


def apart(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """1 - overlap over union of outlines (M, 24, 24) and (N, 24, 24), in [0, 1]; (M, N) float64."""
    rows, columns = (group.reshape(len(group), GRID**2).astype(np.float64) for group in (some, others))
    covered = rows.sum(axis=1)[:, None] + columns.sum(axis=1)
    differing = cdist(rows, columns, "cityblock")  # union less overlap
    return 2 * differing / np.maximum(1, covered + differing)


@dataclass(frozen=True, eq=False)
class Outlines:
    """A catalogue's outlines (N, 24, 24) uint8 and the class of each, "" where none was given."""

    masks: np.ndarray
    classes: tuple[str, ...]

    def nearest(
        self, masks: np.ndarray, *, class_name: str | None = None, own: np.ndarray | None = None
    ) -> np.ndarray:
        """How far outlines (M, 24, 24) are from the nearest of the catalogue, or of one class, (M,).

        own: (M,) the position of each in the catalogue, which is then left out, -1 where it is not in it.
        Numbers in [0, 1]; NaN where no other outline is left.
        """
        places = self.of_class(class_name)
        own = np.full(len(masks), -1) if own is None else own
        parts = [slice(i, i + BLOCK) for i in range(0, max(1, len(masks)), BLOCK)]
        found = np.concatenate([self._nearest(masks[part], places, own[part]) for part in parts])
        return np.where(np.isfinite(found), found, np.nan)

    def of_class(self, class_name: str | None) -> np.ndarray:
        """The positions (n,) of one class's outlines, of all without one."""
        if class_name is None:
            return np.arange(len(self.masks))
        return np.flatnonzero(np.array(self.classes) == class_name)

    def _nearest(self, masks: np.ndarray, places: np.ndarray, own: np.ndarray) -> np.ndarray:
        distances = apart(masks, self.masks[places])
        distances[own[:, None] == places] = np.inf
        return distances.min(axis=1, initial=np.inf)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        names = sorted(set(self.classes))
        codes = np.array([names.index(name) for name in self.classes], dtype=np.uint16)
        return {"masks": pack(self.masks), "class_names": names, "classes": pack(codes)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Outlines:
        """The inverse of `to_dict`."""
        names: Sequence[str] = stored["class_names"]
        return cls(unpack(stored["masks"]), tuple(names[code] for code in unpack(stored["classes"])))
