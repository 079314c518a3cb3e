"""Do two models draw the same picture from the same noise, and are their pictures those they were taught?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .diversity import unit_rows
from .paired import standard_error
from .pixels import Array, to_array

SAME_PICTURE = 0.6  # the cosine of SSCD's features above which two pictures count as the same one
BLOCK = 4096  # training pictures, or samples, compared at a time
CONFIDENT = 1.959964  # standard deviations either side of 95 % of a normal distribution


@dataclass(frozen=True)
class Score:
    """A share of samples and how sure it is.

    standard_error: of value, the deviation with n - 1 over sqrt(n); n: samples, of `rp_conditional` noises;
    threshold: the cosine above which two pictures counted as the same.
    """

    value: float
    standard_error: float
    n: int
    threshold: float

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of n samples: it has a width where all or none count and the error is 0."""
        z2 = CONFIDENT**2
        centre = (self.value + z2 / (2 * self.n)) / (1 + z2 / self.n)
        spread = math.sqrt(self.value * (1 - self.value) / self.n + z2 / (4 * self.n**2))
        half = CONFIDENT * spread / (1 + z2 / self.n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        shown = f"{self.value:.3f} ± {self.standard_error:.3f}"
        return f"{shown} (n = {self.n}, cosine above {self.threshold:.3g})"


def rp_score(features_a: Array, features_b: Array, *, threshold: float = SAME_PICTURE) -> Score:
    """The share of noises from which two models draw the same picture.

    features_a, features_b: (n, D) descriptors of any length, row i of both from noise i. The papers' numbers
    are SSCD's above 0.6, of 10,000 noises and deterministic samplers.
    Raises ValueError on fewer than two rows, on different shapes, on a row of zeros or what is no number, and
    on a threshold beyond a cosine. Source: METHODS 6, "RP".
    """
    _check_threshold(threshold)
    return _score(cosines(features_a, features_b) > threshold, threshold)


def rp_conditional(features_a: Array, features_b: Array, *, threshold: float = SAME_PICTURE) -> Score:
    """The share of noises and classes of which two models draw the same picture.

    features_a, features_b: (n_classes, n, D), entry (c, i) of both from class c and noise i. The classes
    share their noises, so the standard error is that of n means over classes.
    Raises ValueError as `rp_score`. Source: METHODS 6, "RP_cond".
    """
    _check_threshold(threshold)
    ours = _by_class(features_a, "features_a")
    theirs = _by_class(features_b, "features_b")
    if len(ours) != len(theirs):
        raise ValueError(
            f"features_b must be of {len(ours)} classes as features_a, got {len(theirs)} classes"
        )
    same = [cosines(a, b) > threshold for a, b in zip(ours, theirs, strict=True)]
    return _score(np.mean(same, axis=0), threshold)


def rp_between(features: Array, class_features: Array, *, threshold: float = SAME_PICTURE) -> Score:
    """The share of noises from which an unconditional model draws the picture of some class.

    features: (n, D) without a class; class_features: (n_classes, n, D) from the same noises.
    Raises ValueError as `rp_score`. Source: METHODS 6, "RP_between".
    """
    _check_threshold(threshold)
    ours = _rows(features, "features")
    by_class = [_cosines(ours, own, "class_features") for own in _by_class(class_features, "class_features")]
    return _score(np.max(by_class, axis=0) > threshold, threshold)


def gl_score(
    features: Array, training_features: Array | Iterable[Array], *, threshold: float = SAME_PICTURE
) -> Score:
    """The share of samples that are no picture of the training set: 1 all new, 0 all memorised.

    features: (n, D); training_features: (N, D), or blocks of rows, read once. The error is that of the
    samples, the training set taken as it is.
    Raises ValueError as `rp_score`, and on an empty training set. Source: METHODS 6, "GL".
    """
    _check_threshold(threshold)
    rows = _rows(features, "features", at_least=2)
    _, found = nearest(rows, training_features, 1)
    return _score(found[:, 0] <= threshold, threshold)


def nearest(
    features: Array, training_features: Array | Iterable[Array], k: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar training pictures of each sample: their places (n, k) and cosines (n, k) float64.

    The most similar first, of equal ones the earlier. Arguments as for `gl_score`.
    Raises ValueError on a k below 1 or above the training pictures, and as `gl_score`.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rows, seen = _rows(features, "features"), 0
    places = np.empty((len(rows), 0), dtype=np.int64)
    best = np.empty((len(rows), 0))
    for block in _blocks(training_features):
        if block.shape[1] != rows.shape[1]:
            raise ValueError(
                f"training_features must be of width {rows.shape[1]} as features, got {block.shape[1]}"
            )
        at, found = _best_in_block(rows, block, min(k, len(block)))
        places, best = np.hstack([places, seen + at]), np.hstack([best, found])
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        places = np.take_along_axis(places, order, axis=1)
        best = np.take_along_axis(best, order, axis=1)
        seen += len(block)
    if not seen:
        raise ValueError("training_features must be at least 1 row, got 0")
    if k > seen:
        raise ValueError(f"k must be at most the {seen} training pictures, got {k}")
    return places, best


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it does: the shares of different and of same pairs above it, and their numbers."""

    threshold: float
    false_positive_rate: float
    true_positive_rate: float
    n_different: int
    n_same: int

    def __str__(self) -> str:
        return (
            f"a cosine above {self.threshold:.3f} counts as the same picture: so do "
            f"{self.false_positive_rate:.2%} of {self.n_different} different pairs and "
            f"{self.true_positive_rate:.2%} of {self.n_same} same pairs"
        )


def calibrate_threshold(
    same_pairs: Array, different_pairs: Array, *, false_positive_rate: float = 0.01
) -> Calibration:
    """The lowest threshold that at most this share of different pairs exceed, for a descriptor of one's own.

    same_pairs, different_pairs: (N,) and (M,) cosines, as of `cosines`, of pictures known to show the same
    (copies cropped, flipped or compressed) and to show different things.
    Raises ValueError on no pairs, on what is no cosine, on a rate outside (0, 1), and on fewer different
    pairs than it takes for one of them to be this share.
    """
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"false_positive_rate must be between 0 and 1, got {false_positive_rate}")
    same, different = _pairs(same_pairs, "same_pairs"), _pairs(different_pairs, "different_pairs")
    # a little more, as .29 * 100 is 28.999999999999996
    allowed = int(false_positive_rate * len(different) + 1e-9)
    if not allowed:
        needed = math.ceil(1 / false_positive_rate - 1e-9)
        raise ValueError(
            f"different_pairs must be at least {needed} for a false_positive_rate of {false_positive_rate}, "
            f"got {len(different)}"
        )
    threshold = float(np.sort(different)[::-1][allowed])
    return Calibration(
        threshold,
        false_positive_rate=float(np.mean(different > threshold)),
        true_positive_rate=float(np.mean(same > threshold)),
        n_different=len(different),
        n_same=len(same),
    )


def cosines(features_a: Array, features_b: Array) -> np.ndarray:
    """The cosine of each row of features_a (n, D) with that of features_b, (n,) float64.

    Raises ValueError on different shapes, a row of zeros, or what is no number.
    """
    return _cosines(_rows(features_a, "features_a"), features_b, "features_b")


def _cosines(rows: np.ndarray, others: Array, what: str) -> np.ndarray:
    theirs = _rows(others, what)
    if rows.shape != theirs.shape:
        raise ValueError(f"{what} must be of shape {rows.shape} as the others, got {theirs.shape}")
    return np.einsum("nd,nd->n", rows, theirs)


def _score(counted: np.ndarray, threshold: float) -> Score:
    values = np.asarray(counted, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"features must be at least 2 rows, got {len(values)}")
    return Score(float(values.mean()), standard_error(values), len(values), threshold)


def _best_in_block(rows: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in the block (n, k) and cosines (n, k), the highest first."""
    places = np.empty((len(rows), k), dtype=np.int64)
    found = np.empty((len(rows), k))
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        similar = rows[part] @ block.T
        each = np.arange(len(similar))
        for place in range(k):
            highest = similar.argmax(axis=1)
            places[part, place], found[part, place] = highest, similar[each, highest]
            similar[each, highest] = -np.inf
    return places, found


def _blocks(features: Array | Iterable[Array]) -> Iterator[np.ndarray]:
    """Rows of length 1, at most BLOCK of them at a time."""
    whole = isinstance(features, np.ndarray) or hasattr(features, "detach")
    parts: Any = [features] if whole else features
    for given in parts:
        for start in range(0, len(given), BLOCK):
            yield _rows(given[start : start + BLOCK], "training_features")


def _by_class(features: Array, what: str) -> list[Array]:
    if features.ndim != 3 or not len(features):
        raise ValueError(f"{what} must be of shape (n_classes, n, D), got {tuple(features.shape)}")
    return list(features)


def _rows(features: Array, what: str, *, at_least: int = 1) -> np.ndarray:
    try:
        return unit_rows(features, at_least=at_least)
    except ValueError as error:
        raise ValueError(what + str(error).removeprefix("features")) from None


def _pairs(values: Array, what: str) -> np.ndarray:
    pairs = to_array(values)
    if pairs.ndim != 1 or not len(pairs):
        raise ValueError(f"{what} must be a list of cosines, at least one, got shape {tuple(pairs.shape)}")
    if not (np.abs(pairs) <= 1 + 1e-6).all():
        raise ValueError(f"{what} must be in [-1, 1], got {pairs.min():.3g} to {pairs.max():.3g}")
    return pairs


def _check_threshold(threshold: float) -> None:
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be a cosine in [-1, 1], got {threshold}")
