"""What is judged, and the range that a catalogue's own values allow."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

TOTAL_LEVEL = 0.02  # share of the catalogue's own kind that may fail, over all rules together
TAIL = 0.25  # share of a small catalogue's values that its tail is fitted to
SURELY = 1.5  # standard errors


class Criterion(NamedTuple):
    """One judged number: its rule, the just-visible step no limit is tighter than, its possible range."""

    rule: str
    floor: float
    why: str
    lowest: float
    highest: float
    sides: Literal["low", "high", "both"]


_STEP = "a step of L 3 is just visible on a textured surface"
_SHIFT = "a shift of 2 % of the frame goes unnoticed"
_SIZE = "2 % of the frame more or less goes unnoticed"
_NEAR = "a quarter farther than the catalogue's own pictures are is no other kind"
_FLAT = "two flat colours side by side look alike below Delta E 2 to 3"

CRITERIA: dict[str, Criterion] = {
    "background": Criterion("background", 3.0, _FLAT, 0, math.inf, "high"),
    "uniformity": Criterion(
        "uniformity", 3.0, "a backdrop looks flat while it stays within Delta E 3", 0, math.inf, "high"
    ),
    "frame_contact": Criterion(
        "cropping", 0.02, "a product that grazes 2 % of the picture's edge still looks whole", 0, 1, "high"
    ),
    "offset_x": Criterion("centring", 0.02, _SHIFT, -0.5, 0.5, "both"),
    "offset_y": Criterion("centring", 0.02, _SHIFT, -0.5, 0.5, "both"),
    "extent": Criterion("scale", 0.02, _SIZE, 0, 1, "both"),
    "area": Criterion("scale", 0.02, _SIZE, 0, 1, "both"),
    "pose": Criterion(
        "pose", 0.10, "an outline that covers nine tenths of another's stands like it", 0, 1, "high"
    ),
    "lightness": Criterion("light", 3.0, _STEP, 0, 100, "both"),
    "contrast": Criterion("light", 3.0, _STEP, 0, 100, "both"),
    "light_slope": Criterion(
        "light", 0.10, "a tenth more light on one half is hard to tell from its colour", -10, 10, "both"
    ),
    "shadow": Criterion("shadow", 1.0, "L 1 more or less in a soft shadow goes unnoticed", 0, 100, "both"),
    "shadow_depth": Criterion("shadow", 3.0, _STEP, 0, 100, "both"),
    "kind": Criterion("kind", 1.25, _NEAR, 0, 1000, "high"),
    "text": Criterion("text", 0.02, "0.02 of a score is nothing an eye could name", -1000, 1000, "low"),
}
RULES = tuple(dict.fromkeys(criterion.rule for name, criterion in CRITERIA.items() if name != "text"))
FLOORS = {name: (criterion.floor, criterion.why) for name, criterion in CRITERIA.items()}
# what is about the product is judged class by class, what is about the whole picture over all of them
POOLED = ("background", "uniformity", "kind", "text")
LEVEL = TOTAL_LEVEL / sum(2 if criterion.sides == "both" else 1 for criterion in CRITERIA.values())


class Range(NamedTuple):
    """Allowed values, both ends included."""

    low: float
    high: float


def tail_limit(values: np.ndarray, *, level: float) -> float:
    """The value that a further draw from where `values` came from exceeds with probability `level`.

    values: (n,) float, n >= 1. From 1/level values on it is the order statistic of rank
    ceil((n + 1)(1 - level)), right for every distribution. Fewer values have no such rank: the excesses of
    their upper quarter are taken for exponential, of unknown mean, whose predictive distribution
    P(excess > y) = (1 + y / sum of the k excesses)^-k allows for how few they are; or, where they fall off
    clearly faster, for generalised Pareto of a negative shape.
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
    excesses = ordered[n - k :] - threshold
    shape, beyond = tail_shape(excesses), n * level / k
    reach = k * (beyond ** (-1 / k) - 1)
    if shape < 0:
        reach *= (1 - shape) * (1 - beyond**-shape) / (shape * math.log(beyond))
    return max(float(ordered[-1]), float(threshold + excesses.mean() * reach))


def tail_shape(excesses: np.ndarray) -> float:
    """The generalised Pareto shape of sorted excesses (k,), 0 unless they are clearly bounded, then below 0.

    By L-moments, 2 - mean / L_2, plus 1.5 standard errors: an exponential tail is seldom taken for a bounded
    one, because limits too tight fail good pictures.
    """
    k = len(excesses)
    if k < 2 or excesses[0] == excesses[-1]:
        return 0.0
    spread = float(((2 * np.arange(1, k + 1) - k - 1) * excesses).sum()) / (k * (k - 1))
    shape = 2 - float(excesses.mean()) / spread
    return min(0.0, shape + SURELY * (1 - shape) * math.sqrt(4 / (3 * k)))


def allowed_range(values: np.ndarray, *, criterion: Criterion, level: float = LEVEL) -> Range:
    """The range a criterion allows, given the catalogue's own values (n,): quantiles, floors, bounds.

    What could be measured on none of the pictures is not limited.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return Range(criterion.lowest, criterion.highest)
    low, high, centre = criterion.lowest, criterion.highest, float(np.median(values))
    if criterion.sides != "high":
        lower = -tail_limit(-values, level=level)
        low = max(min(lower, centre - criterion.floor), criterion.lowest)
    if criterion.sides != "low":
        upper = tail_limit(values, level=level)
        least = criterion.floor if criterion.sides == "high" else centre + criterion.floor
        high = min(max(upper, least), criterion.highest)
    return Range(low, high)
