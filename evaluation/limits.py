"""The limits that a catalogue's own pictures set."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from skimage.color import deltaE_ciede2000

from ..whole_file import write_whole
from .clusters import Disagreement, clusters_of
from .criteria import CRITERIA, FLOORS, POOLED, RULES, Range, allowed_range
from .look.foreground import MEASURES, Look
from .look.kind import DESCRIPTOR
from .reference import FEWEST, Reference, own_kinds, own_poses

SMALLEST_CLASS = 40  # classes with fewer pictures are judged by the pooled limits
# what a photographer keeps the same; a product's own lightness or outline may well come in groups
AGREED = ("offset_x", "offset_y", "extent", "shadow_depth")
COMMON_BACKDROP = 20.0  # Delta E: white and a middling grey are 32 apart
Lab = tuple[float, float, float]


@dataclass(frozen=True)
class Limits:
    """What a catalogue allows: its backdrop colours, a range for every criterion, its own pictures.

    backdrops: CIE Lab, the most frequent first, one unless the catalogue disagrees with itself; pooled:
    criterion -> Range; by_class: class -> criterion -> Range, for classes of at least 40 pictures;
    class_counts: class -> pictures (empty: calibrated without classes); n: pictures; disagreements: where
    the pictures fall into groups; text: scorer, mean and n of the captions' scores, None where none were
    given; reference: what pose and kind are compared with, None in limits read back from a report.
    """

    backdrops: tuple[Lab, ...]
    pooled: dict[str, Range]
    by_class: dict[str, dict[str, Range]]
    class_counts: dict[str, int]
    n: int
    disagreements: tuple[Disagreement, ...] = ()
    text: dict[str, Any] | None = None
    reference: Reference | None = field(default=None, compare=False, repr=False)

    @property
    def background_lab(self) -> Lab:
        """The backdrop colour that most of the catalogue's pictures have."""
        return self.backdrops[0]

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules there are limits for: all, and `text` where captions were scored."""
        return RULES if self.text is None else (*RULES, "text")

    def of(self, class_name: str | None = None) -> dict[str, Range]:
        """The ranges a picture of this class is judged by; Raises ValueError on a class never seen."""
        if class_name is None or not self.class_counts:
            return self.pooled
        if class_name not in self.class_counts:
            near = get_close_matches(class_name, self.class_counts, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            known = ", ".join(sorted(self.class_counts))
            raise ValueError(f"class must be one of the reference's ({known}), got {class_name!r}{hint}")
        return self.pooled | self.by_class.get(class_name, {})

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON, without the reference; the floors stand beside."""
        return {
            "background_lab": list(self.background_lab),
            "backdrops": [list(colour) for colour in self.backdrops],
            "pooled": _plain(self.pooled),
            "by_class": {name: _plain(ranges) for name, ranges in self.by_class.items()},
            "class_counts": dict(self.class_counts),
            "n": self.n,
            "clusters": [each.to_dict() for each in self.disagreements],
            "text": self.text,
            "floors": {name: {"value": value, "why": why} for name, (value, why) in FLOORS.items()},
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Limits:
        """The inverse of `to_dict`; Raises ValueError when a criterion is missing or unknown."""
        if not set(CRITERIA) - {"text"} <= (got := set(stored.get("pooled", {}))) <= set(CRITERIA):
            raise ValueError(f"limits must be for {sorted(CRITERIA)}, got {sorted(got)}")
        return cls(
            backdrops=tuple(_lab(colour) for colour in stored["backdrops"]),
            pooled=_ranges(stored["pooled"]),
            by_class={name: _ranges(ranges) for name, ranges in stored["by_class"].items()},
            class_counts=dict(stored["class_counts"]),
            n=stored["n"],
            disagreements=tuple(Disagreement.from_dict(each) for each in stored["clusters"]),
            text=stored["text"],
            reference=Reference.from_dict(stored["reference"]) if "reference" in stored else None,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, atomically, the reference in it."""
        reference = {} if self.reference is None else {"reference": self.reference.to_dict()}
        write_json(self.to_dict() | reference, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Limits:
        """Reads what `save` wrote; Raises ValueError, which says what to do, on what other rules wrote."""
        return read_limits(json.loads(Path(path).read_text()), path)


def background_distance(values: Mapping[str, float], backdrops: Sequence[Lab]) -> float:
    """CIEDE2000 between a picture's backdrop and the nearest of some colours given as CIE Lab."""
    own = [values["background_l"], values["background_a"], values["background_b"]]
    return float(deltaE_ciede2000(np.array([own]), np.array(backdrops)).min())


def limits_from(
    looks: Sequence[Look],
    *,
    classes: Sequence[str] | None = None,
    descriptor: str = DESCRIPTOR,
    scorer: str | None = None,
) -> Limits:
    """The limits that a catalogue's own pictures set.

    looks: one `look()` a picture; classes: one name a picture; descriptor: what their features are; scorer:
    what their value "text" is a score of. Each one-sided limit takes an equal part of a total level of 2 %
    (Bonferroni), so at least about 98 % of further pictures of the catalogue's kind pass all rules at once.
    Pictures without a product count for what is about the whole picture alone. Pose and kind are measured
    against the other pictures, and not limited by fewer than 5. Warns where the pictures disagree, and where
    they have no backdrop in common.
    Raises ValueError when there are no pictures, or none shows a product.
    """
    if not looks:
        raise ValueError("reference must be at least one picture, got none")
    measured = (*MEASURES, "text") if scorer is not None else MEASURES
    table = {name: np.array([look.values[name] for look in looks]) for name in measured}
    shown = table["area"] > 0
    if not shown.any():
        raise ValueError(f"reference must show products on a backdrop, got none in {len(looks)} pictures")
    labels = np.array([""] * len(looks) if classes is None else list(classes))
    counts = {} if classes is None else {str(c): int((labels == c).sum()) for c in np.unique(labels)}
    own = [c for c in counts if (shown & (labels == c)).sum() >= SMALLEST_CLASS]

    colours = np.stack([table[f"background_{axis}"] for axis in "lab"], axis=1)
    found = clusters_of(colours, step=2 * CRITERIA["background"].floor)
    backdrops = tuple(_lab(cluster.centre) for cluster in found)
    table["background"] = np.array([background_distance(look.values, backdrops) for look in looks])
    reference, rows = Reference.of(looks, labels.tolist(), descriptor=descriptor)
    enough = len(reference.outlines.masks) >= FEWEST
    table["pose"] = own_poses(looks, reference, rows, shown & enough)
    table["kind"] = own_kinds(looks, rows)
    names = [name for name in CRITERIA if name in table]

    def ranges(chosen: np.ndarray, names: Sequence[str]) -> dict[str, Range]:
        kept = {name: chosen if name in POOLED else chosen & shown for name in names}
        return {name: allowed_range(table[name][kept[name]], criterion=CRITERIA[name]) for name in names}

    pooled = ranges(np.ones(len(looks), dtype=bool), names)
    by_class = {}
    for name in own:
        kept = [each for each in names if each not in POOLED]
        if len(reference.outlines.of_class(name)) < FEWEST:
            kept.remove("pose")  # a catalogue of so many classes that hardly one of its outlines is kept
        else:
            table["pose"] = own_poses(looks, reference, rows, labels == name, class_name=name)
        by_class[name] = ranges(labels == name, kept)
    disagreements = [Disagreement("background", None, found)] if len(found) > 1 else []
    disagreements += _disagreements(table, [(c, shown & (labels == c)) for c in own] or [(None, shown)])
    for each in disagreements:
        warnings.warn(f"{each}; the limits allow all of them", stacklevel=3)
    if (reach := pooled["background"].high) > COMMON_BACKDROP:
        told = f"the limits allow Delta E {reach:.0f} and rule little out"
        warnings.warn(f"reference pictures must share a backdrop to be audited by it: {told}", stacklevel=3)
    text = None
    if scorer is not None:
        text = {"scorer": scorer, "mean": float(table["text"].mean()), "n": len(looks)}
    return Limits(backdrops, pooled, by_class, counts, len(looks), tuple(disagreements), text, reference)


def _disagreements(
    table: Mapping[str, np.ndarray], groups: Sequence[tuple[str | None, np.ndarray]]
) -> list[Disagreement]:
    found = []
    for class_name, chosen in groups:
        for name in AGREED:
            clusters = clusters_of(table[name][chosen], step=3 * CRITERIA[name].floor)
            if len(clusters) > 1:
                found.append(Disagreement(name, class_name, clusters))
    return found


def read_limits(stored: Mapping[str, Any], path: str | os.PathLike[str]) -> Limits:
    """`Limits.from_dict` of what `path` holds; its ValueError names the file and what to do."""
    try:
        return Limits.from_dict(stored)
    except (ValueError, KeyError, TypeError) as error:
        told = error if isinstance(error, ValueError) else f"no {error}"
        raise ValueError(
            f"{path} must hold limits as this version writes them: calibrate anew or, in a run's folder, "
            "delete limits.json and audit.json and start the run again, which keeps its training and sets "
            f"limits from the same pictures ({told})"
        ) from error


def _lab(colour: Sequence[float]) -> Lab:
    lightness, a, b = colour
    return (lightness, a, b)


def _plain(ranges: Mapping[str, Range]) -> dict[str, list[float]]:
    return {name: list(allowed) for name, allowed in ranges.items()}


def _ranges(stored: Mapping[str, Sequence[float]]) -> dict[str, Range]:
    return {name: Range(*ends) for name, ends in stored.items()}


def write_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Writes strict JSON, whole or not at all."""
    write_whole(json.dumps(content, indent=2, allow_nan=False) + "\n", path)
