"""How well training starts can be told from pure noise, and how many components rise above the noise."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .linear_test import ClassModel, accuracy_on, best_linear_test
from .outliers import FEWEST, Outlier, outliers_of, stand_out
from .picture_numbers import PictureNumbers, read_pictures
from .statistics import Statistics
from .verdict import FEWEST_HELD_OUT, verdict_of

__all__ = ["ClassDiagnosis", "Diagnosis", "Outlier", "PictureNumbers", "diagnose", "read_pictures"]


@dataclass(frozen=True)
class ClassDiagnosis:
    """The leak of one class, eq. 6 and 7 with the mean over the values of the class mean as mu.

    accuracy: by sampler, of the best linear test of training starts against pure noise at its first timestep,
    in [0.5, 1]; on the held-out pictures, or by the model if there are none. explained: the share of the
    variance that K = 0..r components explain. visible goes by the held-out variances, or with fewer than
    FEWEST_HELD_OUT pictures by `unseen_variances`.
    """

    class_name: str
    pictures: int  # training pictures
    held_out: int
    signal: float  # eq. 6
    signal_trained: float  # eq. 7
    accuracy: dict[str, float]
    explained: list[float]
    variances: list[float]  # of the training pictures along the axes
    held_out_variances: list[float]  # mean squared score of the held-out pictures, [] if there are none
    visible: int  # suggested K: axes before the first whose variance stays below the noise floor


@dataclass(frozen=True)
class Diagnosis:
    """The leak of a catalogue: is offset fine-tuning worth it, and with which K."""

    classes: list[ClassDiagnosis]  # those with training pictures
    outliers: list[Outlier]  # the furthest beyond their class's limit first, as many as asked for
    flagged: int  # pictures beyond their class's limit
    alpha_last: float  # a_T
    first: dict[str, tuple[int, float]]  # sampler -> first timestep, a there
    noise_floor: float  # (1 - a) / a at the largest a of `first`; inf if that is 0
    dimension: int  # d
    read: int = 0  # pictures that were looked at for outliers

    @property
    def accuracy(self) -> float:
        """Of each class's largest accuracy over samplers, the mean over pictures."""
        pictures = sum(one.pictures for one in self.classes)
        return sum(one.pictures * max(one.accuracy.values()) for one in self.classes) / pictures

    @property
    def shared(self) -> float:
        """How far training starts lie from pure noise in their own standard deviations, by their mean value.

        The root of eq. 7, its mean over pictures: small where pictures differ more than they share.
        """
        pictures = sum(one.pictures for one in self.classes)
        return math.sqrt(sum(one.pictures * one.signal_trained for one in self.classes) / pictures)

    @property
    def visible(self) -> int:
        """Suggested K: the median over pictures of their class's, rounded down; at most what the smallest
        class can have."""
        each = torch.tensor([one.visible for one in self.classes])
        all_pictures = each.repeat_interleave(torch.tensor([one.pictures for one in self.classes]))
        ordered, n = all_pictures.sort().values, len(all_pictures)
        median = int(ordered[(n - 1) // 2] + ordered[n // 2]) // 2
        return min(median, min(one.pictures for one in self.classes) - 1)

    @property
    def verdict(self) -> str:
        """A few plain sentences: whether offset fine-tuning is worth it here, and which K."""
        return verdict_of(self)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it, an infinite noise floor as None."""
        content = asdict(self)
        content["first"] = {label: list(step) for label, step in self.first.items()}
        content["noise_floor"] = self.noise_floor if math.isfinite(self.noise_floor) else None
        return content | {
            "accuracy": self.accuracy,
            "shared": self.shared,
            "visible": self.visible,
            "verdict": self.verdict,
        }


def diagnose(
    statistics: Statistics,
    train: PictureNumbers,
    held_out: PictureNumbers,
    *,
    first: Mapping[str, tuple[int, float]],
    alpha_last: float,
    limit: int = 24,
) -> Diagnosis:
    """How detectable the leak is, which components rise above the noise, and which pictures look odd.

    train: of pictures that the statistics were fitted on, all or some; held_out: of others, if there are any.
    first: sampler -> (first timestep, a there); alpha_last: a_T; limit: how many outliers to list.
    Raises ValueError on an empty `first`, an a outside [0, 1), numbers of another number of axes, a negative
    limit, and statistics of no pictures.
    Source: METHODS 1; eq. 4 to 7.
    """
    if not first:
        raise ValueError("first must name at least one sampler, got none")
    for what, a in [("alpha_last", alpha_last), *((f"a of {label!r}", a) for label, (_, a) in first.items())]:
        if not 0 <= a < 1:
            raise ValueError(f"{what} must be in [0, 1), got {a}")
    rank = statistics.axes.shape[1]
    for what, numbers in (("train", train), ("held_out", held_out)):
        if numbers.scores.shape[1] != rank:
            got = numbers.scores.shape[1]
            raise ValueError(f"{what} must have scores along the statistics' {rank} axes, got {got}")
    if limit < 0:
        raise ValueError(f"limit must be 0 or more, got {limit}")
    if not any(statistics.counts):
        raise ValueError("statistics must be of at least one picture, got none")
    a_largest = max(a for _, a in first.values())
    floor = (1 - a_largest) / a_largest if a_largest else math.inf
    classes: list[ClassDiagnosis] = []
    outliers: list[tuple[float, Outlier]] = []
    flagged = 0
    for c, name in enumerate(statistics.class_names):
        if not statistics.counts[c]:
            continue
        rows = (train.class_ids == c).nonzero()[:, 0]
        own, other = _rows(train, rows), _rows(held_out, (held_out.class_ids == c).nonzero()[:, 0])
        classes.append(
            _diagnose_class(statistics, c, own, other, first=first, alpha_last=alpha_last, floor=floor)
        )
        if min(len(rows), statistics.counts[c]) >= FEWEST:
            standing = stand_out(
                own.scores,
                own.energy,
                statistics.variances[c],
                count=statistics.counts[c],
                dimension=statistics.means.shape[1],
            )
            outliers += outliers_of(name, rows, standing, limit=limit)
            flagged += int((standing.beyond > 1).sum())
    outliers.sort(key=lambda found: -found[0])
    return Diagnosis(
        classes=classes,
        outliers=[outlier for _, outlier in outliers[:limit]],
        flagged=flagged,
        alpha_last=alpha_last,
        first=dict(first),
        noise_floor=floor,
        dimension=statistics.means.shape[1],
        read=len(train.class_ids),
    )


def _modelled_spread(statistics: Statistics, c: int, model: ClassModel) -> float:
    """The variance of a picture's mean value under the class's model."""
    along = statistics.axes[c].double().mean(dim=1).square()
    rest = model.rest * (1 / statistics.means.shape[1] - float(along.sum()))
    return float(statistics.variances[c] @ along) + max(rest, 0.0)


def _diagnose_class(
    statistics: Statistics,
    c: int,
    own: PictureNumbers,
    other: PictureNumbers,
    *,
    first: Mapping[str, tuple[int, float]],
    alpha_last: float,
    floor: float,
) -> ClassDiagnosis:
    """One class; own: its training pictures, other: its held-out ones."""
    model = ClassModel.of(statistics, c)
    tests = {label: best_linear_test(model, a) for label, (_, a) in first.items()}
    d, n = statistics.means.shape[1], statistics.counts[c]
    variances, total = statistics.variances[c], float(statistics.total_variances[c])
    signal = d * alpha_last * float(statistics.means[c].mean()) ** 2
    # Of all the class's pictures; where only some were read, of the model fitted to all.
    spread = float(own.average.var()) if 1 < n == len(own.average) else _modelled_spread(statistics, c, model)
    explained = (variances.cumsum(dim=0) / total).clamp(max=1).tolist() if total else [0.0] * len(variances)
    held_out = other.scores.square().mean(dim=0)
    judged = held_out if len(other.scores) >= FEWEST_HELD_OUT else unseen_variances(variances, total, n)
    return ClassDiagnosis(
        class_name=statistics.class_names[c],
        pictures=n,
        held_out=len(other.scores),
        signal=signal,
        signal_trained=signal / (alpha_last * (spread * d - 1) + 1),
        accuracy={
            label: accuracy_on(model, test, other.scores, other.on_mean) for label, test in tests.items()
        },
        explained=[0.0, *explained],
        variances=variances.tolist(),
        held_out_variances=held_out.tolist() if len(other.scores) else [],
        visible=int((judged > floor).int().cumprod(dim=0).sum()),
    )


def unseen_variances(variances: Tensor, total: float, count: int) -> Tensor:
    """What the variances (r,) along axes fitted to `count` pictures would be on further pictures.

    A picture draws each axis towards itself: without it there, its score along axis k would be lower by
    the share b = e / ((n-1) v), e its energy besides what it has in common with others, v (1-b) along each of
    the axes up to k. With the average picture's energy that is b_k = (total - sum_{j<k} v_j (1 - b_j) - v_k)
    / ((n-2) v_k), and v_k (1 - b_k)^2 is left: what the spiked covariance model gives for axes well above the
    rest, and 0 where pictures have nothing in common.
    """
    unseen = torch.zeros_like(variances)
    if count > 2:
        for k, v in enumerate(variances.tolist()):
            share = min(max((total - v) / ((count - 2) * v), 0.0), 1.0) if v else 1.0
            total -= v * (1 - share)
            unseen[k] = v * (1 - share) ** 2
    return unseen


def _rows(numbers: PictureNumbers, rows: Tensor) -> PictureNumbers:
    return PictureNumbers(*(column[rows] for column in numbers))
