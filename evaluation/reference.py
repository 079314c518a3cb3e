"""What the audit keeps of a catalogue's own pictures: their outlines, and their places in feature space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .look.foreground import Look
from .look.kind import DESCRIPTOR, Kind, held_out_distances
from .look.pose import GRID, Outlines

MOST = 1000  # pictures kept of a larger catalogue, evenly over it
FEWEST = 5  # with fewer there is nothing to tell pose and kind by


@dataclass(frozen=True, eq=False)
class Reference:
    """A catalogue's outlines and its kind of picture."""

    outlines: Outlines
    kind: Kind

    @classmethod
    def of(
        cls, looks: Sequence[Look], labels: Sequence[str], *, descriptor: str = DESCRIPTOR
    ) -> tuple[Reference, np.ndarray]:
        """The reference that pictures make, and the positions of those that were kept.

        labels: the class of each, "" where it has none.
        """
        rows = np.unique(np.linspace(0, len(looks) - 1, min(MOST, len(looks))).round().astype(int))
        kept = [(mask, labels[row]) for row in rows if (mask := looks[row].outline) is not None]
        masks = np.array([mask for mask, _ in kept], dtype=np.uint8).reshape(-1, GRID, GRID)
        outlines = Outlines(masks, tuple(label for _, label in kept))
        features = np.stack([looks[row].features for row in rows])
        return cls(outlines, Kind.fit(features, descriptor=descriptor)), rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, a few hundred kB for 1,000 pictures."""
        return {"outlines": self.outlines.to_dict(), "kind": self.kind.to_dict()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Reference:
        """The inverse of `to_dict`."""
        return cls(Outlines.from_dict(stored["outlines"]), Kind.from_dict(stored["kind"]))


def own_poses(
    looks: Sequence[Look],
    reference: Reference,
    rows: np.ndarray,
    chosen: np.ndarray,
    *,
    class_name: str | None = None,
) -> np.ndarray:
    """The distance of each chosen picture's outline to the nearest other of the reference, (n,).

    looks: the pictures the reference was made of; rows: the positions of those it keeps; chosen: (n,) bool.
    NaN for the others, and for pictures without a product.
    """
    place = {row: i for i, row in enumerate(r for r in rows if looks[r].outline is not None)}
    masks = {i: mask for i in np.flatnonzero(chosen).tolist() if (mask := looks[i].outline) is not None}
    found = np.full(len(looks), np.nan)
    if masks:
        own = np.array([place.get(i, -1) for i in masks])
        outlines = np.stack(list(masks.values()))
        found[list(masks)] = reference.outlines.nearest(outlines, class_name=class_name, own=own)
    return found


def own_kinds(looks: Sequence[Look], rows: np.ndarray) -> np.ndarray:
    """How far each kept picture is from the others' kind, fitted without it, (n,); NaN for the others."""
    found = np.full(len(looks), np.nan)
    if len(rows) >= FEWEST:
        found[rows] = held_out_distances(np.stack([looks[row].features for row in rows]))
    return found
