"""The rules of the on-brand look: what is judged, limits set by a catalogue's own pictures, reasons."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from skimage.color import deltaE_ciede2000

from .foreground import MEASURES

TOTAL_LEVEL = 0.02  # share of the catalogue's own kind that may fail, over all rules together
TAIL = 0.25  # share of a small catalogue's values that its tail is fitted to
SMALLEST_CLASS = 40  # classes with fewer pictures are judged by the pooled limits


class Criterion(NamedTuple):
    """One judged number: its rule, the just-visible step no limit is tighter than, and its possible range."""

    rule: str
    floor: float
    why: str
    lowest: float
    highest: float
    two_sided: bool


CRITERIA: dict[str, Criterion] = {
    "background": Criterion(
        "background", 3.0, "two flat colours side by side look alike below Delta E 2 to 3", 0, math.inf, False
    ),
    "uniformity": Criterion(
        "uniformity", 3.0, "a backdrop looks flat while it stays within Delta E 3", 0, math.inf, False
    ),
    "frame_contact": Criterion(
        "cropping", 0.02, "a product that grazes 2 % of the picture's edge still looks whole", 0, 1, False
    ),
    "offset_x": Criterion("centring", 0.02, "a shift of 2 % of the frame goes unnoticed", -0.5, 0.5, True),
    "offset_y": Criterion("centring", 0.02, "a shift of 2 % of the frame goes unnoticed", -0.5, 0.5, True),
    "extent": Criterion("scale", 0.02, "2 % of the frame more or less goes unnoticed", 0, 1, True),
    "area": Criterion("scale", 0.02, "2 % of the frame more or less goes unnoticed", 0, 1, True),
    "lightness": Criterion("light", 3.0, "a step of L 3 is just visible on a textured surface", 0, 100, True),
    "contrast": Criterion("light", 3.0, "a step of L 3 is just visible on a textured surface", 0, 100, True),
}
RULES = tuple(dict.fromkeys(criterion.rule for criterion in CRITERIA.values()))
FLOORS = {name: (criterion.floor, criterion.why) for name, criterion in CRITERIA.items()}
# what is about the product is judged class by class, what is about the backdrop over all of them
POOLED = ("background", "uniformity")
LEVEL = TOTAL_LEVEL / sum(2 if criterion.two_sided else 1 for criterion in CRITERIA.values())


class Range(NamedTuple):
    """Allowed values, both ends included."""

    low: float
    high: float


class Failure(NamedTuple):
    """A broken rule and, in plain words with the measured value and the limit, how."""

    rule: str
    reason: str


def tail_limit(values: np.ndarray, *, level: float) -> float:
    """The value that a further draw from where `values` came from exceeds with probability `level`.

    values: (n,) float, n >= 1. From 1/level values on it is the order statistic of rank
    ceil((n + 1)(1 - level)), right for every distribution. Fewer values have no such rank: the excesses of
    their upper quarter are taken for exponential, of unknown mean, whose predictive distribution
    P(excess > y) = (1 + y / sum of the k excesses)^-k allows for how few they are.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    rank = math.ceil((n + 1) * (1 - level))
    if rank <= n:
        return float(ordered[rank - 1])
    if n == 1:
        return float(ordered[0])
    k = min(math.ceil(TAIL * n), n - 1)
    threshold = ordered[n - k - 1]
    total = float(np.sum(ordered[n - k :] - threshold))
    return max(float(ordered[-1]), float(threshold) + total * ((k / (n * level)) ** (1 / k) - 1))


def allowed_range(values: np.ndarray, *, criterion: Criterion, level: float = LEVEL) -> Range:
    """The range a criterion allows, given the catalogue's own values (n,): quantiles, floors, bounds."""
    values = values[np.isfinite(values)]
    upper = tail_limit(values, level=level)
    if not criterion.two_sided:
        return Range(criterion.lowest, min(max(upper, criterion.floor), criterion.highest))
    lower, centre = -tail_limit(-values, level=level), float(np.median(values))
    return Range(
        max(min(lower, centre - criterion.floor), criterion.lowest),
        min(max(upper, centre + criterion.floor), criterion.highest),
    )


def background_distance(values: Mapping[str, float], background_lab: Sequence[float]) -> float:
    """CIEDE2000 between a picture's backdrop and a colour given as CIE Lab."""
    own = [values["background_l"], values["background_a"], values["background_b"]]
    return float(deltaE_ciede2000(np.array([own]), np.array([background_lab]))[0])


def _plain(ranges: Mapping[str, Range]) -> dict[str, list[float]]:
    return {name: list(allowed) for name, allowed in ranges.items()}


def _ranges(stored: Mapping[str, Sequence[float]]) -> dict[str, Range]:
    return {name: Range(*ends) for name, ends in stored.items()}


@dataclass(frozen=True)
class Limits:
    """What a catalogue allows: its backdrop colour and a range for every criterion.

    background_lab: CIE Lab; pooled: criterion -> Range; by_class: class -> criterion -> Range, for classes of
    at least 40 pictures; class_counts: class -> pictures (empty: calibrated without classes); n: pictures.
    """

    background_lab: tuple[float, float, float]
    pooled: dict[str, Range]
    by_class: dict[str, dict[str, Range]]
    class_counts: dict[str, int]
    n: int

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
        """Plain numbers, strings and lists, for JSON; the floors stand beside the limits."""
        return {
            "background_lab": list(self.background_lab),
            "pooled": _plain(self.pooled),
            "by_class": {name: _plain(ranges) for name, ranges in self.by_class.items()},
            "class_counts": dict(self.class_counts),
            "n": self.n,
            "floors": {name: {"value": value, "why": why} for name, (value, why) in FLOORS.items()},
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Limits:
        """The inverse of `to_dict`; Raises ValueError when a criterion is missing or unknown."""
        if (got := set(stored.get("pooled", {}))) != set(CRITERIA):
            raise ValueError(f"limits must be for {sorted(CRITERIA)}, got {sorted(got)}")
        lightness, a, b = stored["background_lab"]
        return cls(
            background_lab=(lightness, a, b),
            pooled=_ranges(stored["pooled"]),
            by_class={name: _ranges(ranges) for name, ranges in stored["by_class"].items()},
            class_counts=dict(stored["class_counts"]),
            n=stored["n"],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, atomically."""
        write_json(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Limits:
        """Reads what `save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text()))


def limits_from(measures: Sequence[Mapping[str, float]], *, classes: Sequence[str] | None = None) -> Limits:
    """The limits that the measures of a catalogue's own pictures set.

    measures: one `measure()` a picture; classes: one name a picture. Each of the 15 one-sided limits takes
    an equal part of a total level of 2 % (Bonferroni), so at least about 98 % of further pictures of the
    catalogue's kind pass all rules at once. Pictures without a product count for the backdrop alone.
    Raises ValueError when there are no pictures, or none shows a product.
    """
    if not measures:
        raise ValueError("reference must be at least one picture, got none")
    table = {name: np.array([values[name] for values in measures]) for name in MEASURES}
    lightness, a, b = (float(np.median(table[f"background_{axis}"])) for axis in "lab")
    background_lab = (lightness, a, b)
    table["background"] = np.array([background_distance(values, background_lab) for values in measures])
    shown = table["area"] > 0
    if not shown.any():
        raise ValueError(f"reference must show products on a backdrop, got none in {len(measures)} pictures")

    def ranges(chosen: np.ndarray, names: Sequence[str]) -> dict[str, Range]:
        rows = {name: chosen if name in POOLED else chosen & shown for name in names}
        return {name: allowed_range(table[name][rows[name]], criterion=CRITERIA[name]) for name in names}

    labels = np.array([""] * len(measures) if classes is None else list(classes))
    counts = {} if classes is None else {str(c): int((labels == c).sum()) for c in np.unique(labels)}
    product = [name for name in CRITERIA if name not in POOLED]
    own = [c for c in counts if (shown & (labels == c)).sum() >= SMALLEST_CLASS]
    return Limits(
        background_lab=background_lab,
        pooled=ranges(np.ones(len(measures), dtype=bool), list(CRITERIA)),
        by_class={c: ranges(labels == c, product) for c in own},
        class_counts=counts,
        n=len(measures),
    )


def judge(values: Mapping[str, float], *, limits: Limits, class_name: str | None = None) -> list[Failure]:
    """The rules one picture breaks, given its `measure()`; an empty list passes.

    A picture without a product breaks `scale`; its place and light are then not judged.
    """
    judged = dict(values, background=background_distance(values, limits.background_lab))
    allowed = limits.of(class_name)
    if judged["area"] == 0:
        for name in CRITERIA:
            if name not in POOLED:
                judged[name] = math.nan
    failures = [
        Failure(criterion.rule, describe(name, judged[name], allowed=allowed[name]))
        for name, criterion in CRITERIA.items()
        if judged[name] < allowed[name].low or judged[name] > allowed[name].high
    ]
    if values["area"] == 0:
        failures.append(Failure("scale", "no product stands out from the backdrop"))
    return failures


def describe(name: str, value: float, *, allowed: Range) -> str:
    """How `value` breaks the range of criterion `name`, in plain words."""
    low, high = allowed
    ends = f"allowed {low:.1%} to {high:.1%}"
    match name:
        case "background":
            return f"backdrop colour is Delta E {value:.1f} from the catalogue's, at most {high:.1f}"
        case "uniformity":
            return f"backdrop varies by Delta E {value:.1f}, at most {high:.1f}"
        case "frame_contact":
            return f"product touches {value:.1%} of the picture's edge, at most {high:.1%}"
        case "offset_x":
            return f"product sits {value:+.1%} sideways (right is +), allowed {low:+.1%} to {high:+.1%}"
        case "offset_y":
            return f"product sits {value:+.1%} up or down (down is +), allowed {low:+.1%} to {high:+.1%}"
        case "extent":
            return f"product is {value:.1%} of the frame long, {ends}"
        case "area":
            return f"product covers {value:.1%} of the frame, {ends}"
        case "lightness":
            return f"product's mean lightness is L {value:.1f}, allowed {low:.1f} to {high:.1f}"
        case _:
            return f"product's contrast is L {value:.1f}, allowed {low:.1f} to {high:.1f}"


def write_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Writes strict JSON beside `path`, then renames, so that no half-written file is ever seen."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    beside.replace(path)
