"""Pictures unlike their class: leave-one-out Mahalanobis distances."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FEWEST = 4  # pictures of a class for any of them to be called unlike the others
FEW = 20  # and for its axes to be believed
DEVIATIONS = 5.0  # beyond the median, in robust standard deviations
LEAST_SPREAD = 0.05  # of the median: below it a deviation is rounding, or chance among few pictures
LEAST_RESIDUAL = 1e-3  # of the mean energy per direction, where axes leave nothing


@dataclass(frozen=True)
class Outlier:
    """A training picture that lies far from its class."""

    row: int  # position in the order of iteration of the training pictures
    class_name: str
    distance: float  # leave-one-out Mahalanobis distance, see `stand_out`
    ratio: float  # distance over the median of the class
    flagged: bool  # beyond the class's limit


class Standing(NamedTuple):
    """Where the n pictures of a class stand."""

    distance: Tensor  # (n,) float64
    ratio: Tensor  # (n,) float64, over the median
    beyond: Tensor  # (n,) float64, over the limit


def leave_one_out_distances(
    scores: Tensor, energy: Tensor, variances: Tensor, *, count: int, dimension: int
) -> Tensor:
    """Mahalanobis distance (n,) of each picture to the mean and covariance of all others of its class.

    scores: (n, r) along the axes, from the class mean; energy: (n,) squared distance from it; variances: (r,)
    of all `count` pictures, dividing by count - 1. float64.
    The model: along the axes the others' covariance plus s2, in the other d - r directions s2, the median
    residual energy per direction (a median, since an outlier would inflate a mean). With u = x - mean, its
    scores z and N = count, the others' mean is N/(N-1) u away and their scatter S - N/(N-1) z z^T. So with
    B = S + (N-2) s2 I and q = z^T B^-1 z, Sherman and Morrison give
    distance^2 = (N/(N-1))^2 [(N-2) q / (1 - N/(N-1) q) + |u_rest|^2 / s2].
    """
    ahead = count / (count - 1)
    rest = (energy - scores.square().sum(dim=1)).clamp(min=0)
    directions = dimension - scores.shape[1]
    residual = ahead * torch.quantile(rest, 0.5) / directions if directions else energy.new_zeros(())
    least = (LEAST_RESIDUAL * energy.mean() / dimension).clamp(min=torch.finfo(torch.float64).tiny)
    residual = torch.maximum(residual, least)
    q = (scores.square() / ((count - 1) * variances + (count - 2) * residual)).sum(dim=1)
    # At least what s2 alone leaves of 1, but for the rounding of float32 axes.
    left = (1 - ahead * q).clamp(min=1e-9)
    return ahead * ((count - 2) * q / left + rest / residual).sqrt()


def stand_out(scores: Tensor, energy: Tensor, variances: Tensor, *, count: int, dimension: int) -> Standing:
    """How far each picture lies from its class, as a distance and against the class's limit.

    As in `leave_one_out_distances`, which is taken twice: with the axes, and with none of them, since
    several odd pictures make axes of their own and lie close along them. The one that puts a picture further
    beyond its limit counts; with less than FEW pictures only the second. The limit is the median and
    DEVIATIONS robust standard deviations (1.4826 times the median absolute deviation).
    """
    views = [0, scores.shape[1]] if scores.shape[1] and count >= FEW else [0]
    found = []
    for k in views:
        distance = leave_one_out_distances(
            scores[:, :k], energy, variances[:k], count=count, dimension=dimension
        )
        middle = torch.quantile(distance, 0.5)
        spread = 1.4826 * torch.quantile((distance - middle).abs(), 0.5)
        limit = middle + DEVIATIONS * torch.maximum(spread, LEAST_SPREAD * middle)
        # Where most pictures are equal the median is 0.
        typical = torch.maximum(middle, 1e-3 * distance.max()).clamp(min=torch.finfo(torch.float64).tiny)
        found.append(torch.stack([distance, distance / typical, distance / torch.maximum(limit, typical)]))
    stacked = torch.stack(found)  # (views, 3, n)
    best = stacked[:, 2].argmax(dim=0)
    return Standing(*stacked[best, :, torch.arange(len(energy))].T)


def outliers_of(
    class_name: str, rows: Tensor, standing: Standing, *, limit: int
) -> list[tuple[float, Outlier]]:
    """The `limit` pictures of a class furthest beyond its limit, each with how far that is.

    rows: (n,) positions of the pictures.
    """
    order = standing.beyond.argsort(descending=True, stable=True)[:limit]
    columns = (rows[order], *(column[order] for column in standing))
    return [
        (beyond, Outlier(row, class_name, distance, ratio, beyond > 1))
        for row, distance, ratio, beyond in zip(*(column.tolist() for column in columns), strict=True)
    ]
