"""What kind of picture: layout, edges and colours as a vector, and how far one is from a catalogue's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from scipy.linalg import eigh
from scipy.spatial.distance import cdist

from .packed import pack, unpack

DESCRIPTOR = "layout, edges and colours"
SIDE, TILES, CELLS, DIRECTIONS = 48, 8, 6, 8
LAB_STEPS = ((0, 100, 4), (-60, 60, 5), (-60, 60, 5))  # lowest, highest and number of bins, of L, a, b
AXES = 64
PER_AXIS = 4  # pictures a principal axis needs
NEIGHBOURS = 3
FOLDS = 10
SMALLEST_VARIANCE = 1e-3  # of a feature: below it, differences are grain


def features_of(lab: np.ndarray) -> np.ndarray:
    """A picture's layout in 8 x 8 Lab tiles, its edges by place and direction, its colours; (580,) float32.

    lab: (H, W, 3), stretched to a square first.
    """
    size = (SIDE, SIDE)
    planes = [np.asarray(Image.fromarray(lab[..., i]).resize(size, Image.Resampling.BOX)) for i in range(3)]
    step = SIDE // TILES
    tiles = np.stack([plane.reshape(TILES, step, TILES, step).mean((1, 3)) for plane in planes]) / 10
    return np.concatenate([tiles.ravel(), _edges(planes[0]), _colours(planes)]).astype(np.float32)


def _edges(lightness: np.ndarray) -> np.ndarray:
    """Square root of the mean gradient in each of 6 x 6 cells and 8 directions."""
    down, across = np.gradient(lightness)
    direction = ((np.arctan2(down, across) % np.pi) / np.pi * DIRECTIONS).astype(int) % DIRECTIONS
    cell = np.arange(SIDE) * CELLS // SIDE
    place = (cell[:, None] * CELLS + cell) * DIRECTIONS + direction
    sums = np.bincount(place.ravel(), np.hypot(down, across).ravel(), minlength=CELLS**2 * DIRECTIONS)
    return np.sqrt(sums / (SIDE / CELLS) ** 2)


def _colours(planes: list[np.ndarray]) -> np.ndarray:
    """Square root of the share of pixels in each Lab bin, times 3 to weigh as much as the rest."""
    place = np.zeros(planes[0].shape, dtype=int)
    for plane, (low, high, bins) in zip(planes, LAB_STEPS, strict=True):
        place = place * bins + ((plane - low) / (high - low) * bins).astype(int).clip(0, bins - 1)
    count = int(np.prod([bins for _, _, bins in LAB_STEPS]))
    return 3 * np.sqrt(np.bincount(place.ravel(), minlength=count) / SIDE**2)


@dataclass(frozen=True, eq=False)
class Kind:
    """A catalogue in feature space: principal axes, an even spread beyond them, and its pictures' places.

    mean (D,), axes (K, D), variances (K,) float32; rest: the variance of each direction beyond the axes;
    places: (N, K) float32, whitened; descriptor: what the features are.
    """

    mean: np.ndarray
    axes: np.ndarray
    variances: np.ndarray
    rest: float
    places: np.ndarray
    descriptor: str = DESCRIPTOR

    @classmethod
    def fit(cls, features: np.ndarray, *, descriptor: str = DESCRIPTOR) -> Kind:
        """The space of (N, D) features: as many axes as N / 4, at most 64."""
        features = np.asarray(features, dtype=np.float64)
        n, dimensions = features.shape
        mean, count = features.mean(axis=0), min(AXES, n // PER_AXIS, dimensions)
        covariance = (features - mean).T @ (features - mean) / max(1, n - 1)
        variances, axes = eigh(covariance, subset_by_index=(dimensions - max(1, count), dimensions - 1))
        variances, axes = variances[::-1][:count].clip(0), axes.T[::-1][:count]
        beyond = covariance.trace() - variances.sum()
        rest = max(SMALLEST_VARIANCE, float(beyond) / max(1, dimensions - count))
        axes = axes.astype(np.float16).astype(np.float32)  # as they are stored
        nowhere = np.empty((0, count), dtype=np.float32)
        kept = variances.astype(np.float32)
        return cls(mean.astype(np.float32), axes, kept, rest, nowhere, descriptor).at(features)

    def at(self, features: np.ndarray) -> Kind:
        """The same space with the pictures of (N, D) features in it."""
        whitened = self._place(features)[0].astype(np.float16).astype(np.float32)
        return replace(self, places=whitened)

    def distance(self, features: np.ndarray) -> np.ndarray:
        """How far pictures of (N, D) features are from the catalogue's: (N,) float64.

        About 1 for the catalogue's own. The root of the mean, over all directions, of the squared distance
        in standard deviations: along the axes to the 3 nearest pictures, beyond them to the mean.
        """
        placed, beyond = self._place(features)
        nearest = np.sort(cdist(placed, self.places, "sqeuclidean"), axis=1)[:, :NEIGHBOURS].mean(axis=1)
        return np.sqrt((nearest + beyond) / len(self.mean))

    def _place(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whitened places (N, K) along the axes, and the squared distance beyond them, (N,)."""
        away = np.asarray(features, dtype=np.float64) - self.mean
        along = away @ self.axes.T
        beyond = ((away**2).sum(axis=1) - (along**2).sum(axis=1)).clip(0) / self.rest
        return along / np.sqrt(self.variances + self.rest), beyond

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        arrays = {name: pack(getattr(self, name).astype(np.float16)) for name in ("axes", "places")}
        arrays |= {name: pack(getattr(self, name)) for name in ("mean", "variances")}
        return arrays | {"rest": self.rest, "descriptor": self.descriptor}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Kind:
        """The inverse of `to_dict`."""
        arrays = {name: unpack(stored[name]).astype(np.float32) for name in
                  ("mean", "axes", "variances", "places")}  # fmt: skip
        return cls(**arrays, rest=stored["rest"], descriptor=stored["descriptor"])


def held_out_distances(features: np.ndarray) -> np.ndarray:
    """The distance of each of (N, D) features from the space of others, fitted without its tenth; (N,).

    What further pictures of the same kind will show; N must be at least 2.
    """
    fold = np.arange(len(features)) % min(FOLDS, len(features))
    found = np.empty(len(features))
    for i in range(int(fold.max()) + 1):
        out = fold == i
        found[out] = Kind.fit(features[~out]).distance(features[out])
    return found
