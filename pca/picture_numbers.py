"""The few numbers of each picture that a diagnosis is made of."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .statistics import Statistics

ROWS_AT_ONCE = 256  # how many latents are held in float64 at a time


class PictureNumbers(NamedTuple):
    """What a diagnosis needs of each picture, float64; row i is the i-th picture of the iteration."""

    class_ids: Tensor  # (N,) int64
    average: Tensor  # (N,) mean over the d values of x_0
    on_mean: Tensor  # (N,) inner product of x_0 with its class mean
    scores: Tensor  # (N, r) of x_0 less the class mean, along the axes
    energy: Tensor  # (N,) squared norm of x_0 less the class mean


def read_pictures(
    statistics: Statistics, latents: Tensor | Iterable[tuple[Tensor, Tensor]], class_ids: Tensor | None = None
) -> PictureNumbers:
    """The numbers of pictures under the statistics, in one pass.

    latents: (N, C, H, W) scaled latents with class_ids (N,), or an iterable of such pairs, even an empty one.
    Raises ValueError on latents of another shape or not finite, and on missing or unknown class ids.
    """
    if isinstance(latents, Tensor):
        if class_ids is None or len(class_ids) != len(latents):
            got = None if class_ids is None else len(class_ids)
            raise ValueError(f"class_ids must be one id for each of {len(latents)} latents, got {got}")
        latents = [(latents, class_ids)]
    rank = statistics.axes.shape[1]
    read = [_nothing(rank)]
    for batch, ids in latents:
        _check_batch(statistics, batch, ids.cpu())
        for x, some in zip(batch.split(ROWS_AT_ONCE), ids.cpu().split(ROWS_AT_ONCE), strict=True):
            read.append(_numbers(statistics, x.detach().cpu().flatten(1).double(), some.long()))
    return PictureNumbers(*(torch.cat(column) for column in zip(*read, strict=True)))


def _nothing(rank: int, rows: int = 0) -> PictureNumbers:
    average, on_mean, energy = torch.zeros(3, rows, dtype=torch.float64)
    scores = torch.zeros(rows, rank, dtype=torch.float64)
    return PictureNumbers(torch.zeros(rows, dtype=torch.long), average, on_mean, scores, energy)


def _numbers(statistics: Statistics, rows: Tensor, ids: Tensor) -> PictureNumbers:
    numbers = _nothing(statistics.axes.shape[1], len(rows))._replace(class_ids=ids, average=rows.mean(dim=1))
    for c in ids.unique().tolist():
        own, mean = ids == c, statistics.means[c]
        centred = rows[own] - mean
        numbers.on_mean[own] = rows[own] @ mean
        numbers.scores[own] = centred @ statistics.axes[c].double().T
        numbers.energy[own] = centred.square().sum(dim=1)
    return numbers


def _check_batch(statistics: Statistics, x: Tensor, ids: Tensor) -> None:
    n_classes = len(statistics.class_names)
    if tuple(x.shape[1:]) != tuple(statistics.shape):
        shape = ", ".join(map(str, statistics.shape))
        raise ValueError(f"latents must be shaped (B, {shape}) as in the statistics, got {tuple(x.shape)}")
    if len(ids) != len(x):
        raise ValueError(f"class_ids must be one id for each of {len(x)} latents, got {len(ids)}")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < n_classes:
        raise ValueError(f"class_ids must be in [0, {n_classes}), got {sorted(set(ids.tolist()))}")
    if not torch.isfinite(x).all():
        raise ValueError("latents must be finite, got nan or inf")
