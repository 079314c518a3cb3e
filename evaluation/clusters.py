"""A catalogue that disagrees with itself: pictures that fall into groups far apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

FAR = 5.0  # spreads between two centres that are no accident of one broad group
SMALLEST_SHARE, SMALLEST_COUNT = 0.1, 5  # fewer pictures are outliers, not a group


class Cluster(NamedTuple):
    """Pictures of a catalogue that agree: how many, and their median."""

    size: int
    centre: tuple[float, ...]


class Disagreement(NamedTuple):
    """A criterion on which the pictures of a catalogue, or of one class, fall apart; the largest first."""

    criterion: str
    class_name: str | None
    clusters: tuple[Cluster, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "criterion": self.criterion,
            "class": self.class_name,
            "clusters": [{"size": size, "centre": list(centre)} for size, centre in self.clusters],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Disagreement:
        """The inverse of `to_dict`."""
        clusters = tuple(Cluster(each["size"], tuple(each["centre"])) for each in stored["clusters"])
        return cls(stored["criterion"], stored["class"], clusters)

    def __str__(self) -> str:
        parts = [f"{size} pictures at {_shown(centre)}" for size, centre in self.clusters]
        whose = "" if self.class_name is None else f" of class {self.class_name!r}"
        return f"reference pictures{whose} disagree on {self.criterion}: {', '.join(parts)}"


def clusters_of(values: np.ndarray, *, step: float) -> tuple[Cluster, ...]:
    """The groups that (n,) or (n, d) values fall into, the largest first; one group where they agree.

    step: two centres nearer than this are one group, whatever their spread. A group is split, by
    2-means along its principal axis, where the centres are 5 spreads apart and each half holds a tenth of
    all values, at least 5.
    """
    values = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    values = values[np.isfinite(values).all(axis=1)]
    smallest = max(SMALLEST_COUNT, math.ceil(SMALLEST_SHARE * len(values)))
    groups = _split(values, step=step, smallest=smallest)
    found = [Cluster(len(group), tuple(np.median(group, axis=0).tolist())) for group in groups if len(group)]
    return tuple(sorted(found, key=lambda cluster: -cluster.size))


def _split(values: np.ndarray, *, step: float, smallest: int) -> list[np.ndarray]:
    if len(values) < 2 * smallest:
        return [values]
    away = values - values.mean(axis=0)
    along = away @ np.linalg.svd(away, full_matrices=False)[2][0]
    order = np.argsort(along, kind="stable")
    halves = values[order[: (cut := _best_cut(along[order], smallest))]], values[order[cut:]]
    between = float(np.linalg.norm(halves[0].mean(axis=0) - halves[1].mean(axis=0)))
    spread = math.sqrt(np.mean([along[order[:cut]].var(), along[order[cut:]].var()]))
    if between < max(step, FAR * spread):
        return [values]
    return [group for half in halves for group in _split(half, step=step, smallest=smallest)]


def _best_cut(ordered: np.ndarray, smallest: int) -> int:
    """Where to cut sorted numbers so that the squares left within both parts are least."""
    counts = np.arange(1, len(ordered))
    left = ordered.cumsum()[:-1]
    gain = left**2 / counts + (ordered.sum() - left) ** 2 / (len(ordered) - counts)
    gain[: smallest - 1] = gain[len(ordered) - smallest :] = -math.inf
    return int(gain.argmax()) + 1


def _shown(centre: tuple[float, ...]) -> str:
    if len(centre) == 1:
        return f"{centre[0]:z.3g}"
    return f"Lab ({', '.join(f'{value:z.1f}' for value in centre)})"
