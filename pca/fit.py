"""Class means and principal components of scaled latents, exact to float64."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
ROWS_AT_ONCE = 1024  # how many latents are held in float64 at a time


class Statistics(NamedTuple):
    """What a start distribution is made of; float32."""

    mean: Tensor  # (n_classes, C, H, W)
    components: Tensor  # (n_classes, K, C, H, W), orthonormal within a class
    variances: Tensor  # (n_classes, K), descending
    counts: list[int]


def fit_statistics(
    latents: Tensor | Iterable[Batch],
    class_ids: Tensor | None = None,
    *,
    class_names: Sequence[str],
    components: int = 0,
    allow_empty: bool = False,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Statistics:
    """Mean and leading principal components of every class.

    latents: (N, C, H, W) scaled latents with class_ids (N,), or a re-iterable of such pairs of tensors.
    The variances divide by n - 1; the entry of largest magnitude in a component is positive.
    allow_empty: a class without pictures gets zeros and the count 0.
    reduce: the sum of a float64 or int64 CPU tensor over the processes of a run, of which each passes its
    own share of the pictures, none if there are none for it; all get the same means.
    Raises ValueError on latents that are not finite or of mixed shape, on unknown class ids, on a class
    without pictures, on more components than a class's pictures allow, and on components with reduce.
    Source: METHODS 1, "Start distribution Q".
    """
    if components < 0:
        raise ValueError(f"components must be 0 or more, got {components}")
    if components and reduce is not None:
        raise ValueError(f"components must be 0 where processes share out the pictures, got {components}")
    batches = _as_batches(latents, class_ids)
    sums, counts, shape = _sums(batches, len(class_names), reduce or (lambda tensor: tensor))
    for name, count in zip(class_names, counts.tolist(), strict=True):
        if count == 0 and not allow_empty:
            raise ValueError(f"class {name!r} must have at least one picture, got 0")
        if components > count - 1 and count:
            raise ValueError(
                f"components must be at most n - 1 in every class: "
                f"class {name!r} has n = {count} pictures, got components = {components}"
            )
    means = sums / counts.clamp(min=1)[:, None]
    directions = torch.zeros(len(class_names), components, means.shape[1])
    variances = torch.zeros(len(class_names), components)
    for c, count in enumerate(counts.tolist()):
        if components and count:
            basis, squares = _principal_axes(batches, c, mean=means[c], count=count, components=components)
            directions[c] = basis
            variances[c] = squares / (count - 1)
    return Statistics(
        means.float().unflatten(1, shape), directions.unflatten(2, shape), variances, counts.tolist()
    )


def _as_batches(latents: Tensor | Iterable[Batch], class_ids: Tensor | None) -> Iterable[Batch]:
    if isinstance(latents, Tensor):
        if class_ids is None or len(class_ids) != len(latents):
            got = None if class_ids is None else len(class_ids)
            raise ValueError(f"class_ids must be one id for each of {len(latents)} latents, got {got}")
        return list(zip(latents.split(ROWS_AT_ONCE), class_ids.split(ROWS_AT_ONCE), strict=True))
    if isinstance(latents, Iterator):
        raise ValueError(
            "latents must be a tensor or something that can be iterated more than once, "
            f"got {type(latents).__name__}"
        )
    return latents


def _sums(
    batches: Iterable[Batch], n_classes: int, reduce: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, torch.Size]:
    """Per-class sums (n_classes, d) in float64, counts (n_classes,), and the latent shape."""
    sums: Tensor | None = None
    counts = torch.zeros(n_classes, dtype=torch.long)
    shape = torch.Size()
    for x, ids in batches:
        x, ids = x.detach().cpu(), ids.cpu()
        if sums is None:
            shape = x.shape[1:]
            sums = torch.zeros(n_classes, shape.numel(), dtype=torch.float64)
        _check_batch(x, ids, shape=shape, n_classes=n_classes)
        sums.index_add_(0, ids, x.flatten(1).double())
        counts += torch.bincount(ids, minlength=n_classes)
    shape = _common_shape(shape, reduce)
    if sums is None:
        sums = torch.zeros(n_classes, shape.numel(), dtype=torch.float64)
    sums, counts = reduce(sums), reduce(counts)
    if not counts.any():
        raise ValueError("latents must hold at least one picture, got none")
    return sums, counts, shape


def _check_batch(x: Tensor, ids: Tensor, *, shape: torch.Size, n_classes: int) -> None:
    if x.shape[1:] != shape:
        raise ValueError(f"latents must share one shape, got {tuple(shape)} and {tuple(x.shape[1:])}")
    if not torch.isfinite(x).all():
        raise ValueError("latents must be finite, got nan or inf")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < n_classes:
        raise ValueError(f"class_ids must be in [0, {n_classes}), got {sorted(set(ids.tolist()))}")


def _common_shape(shape: torch.Size, reduce: Callable[[Tensor], Tensor]) -> torch.Size:
    """(C, H, W) of the latents of all processes; this one's shape is empty if it has no pictures."""
    known, *total = reduce(torch.tensor([1, *shape] if shape else [0, 0, 0, 0])).tolist()
    if known == 0:
        raise ValueError("latents must hold at least one picture, got none")
    common = torch.Size(side // known for side in total)
    if shape and shape != common:
        raise ValueError(f"latents must share one shape, got {tuple(shape)} and others in other processes")
    return common


def _principal_axes(
    batches: Iterable[Batch], c: int, *, mean: Tensor, count: int, components: int
) -> tuple[Tensor, Tensor]:
    """Leading right singular vectors (K, d) of a class's centred latents, and squared singular values."""
    centred = (x.cpu()[ids.cpu() == c].flatten(1).double() - mean for x, ids in batches)
    if count <= len(mean):
        rows = torch.cat(list(centred))
        squares, left = torch.linalg.eigh(rows @ rows.T)
        axes = rows.T @ left[:, -components:].flip(1)
    else:
        scatter = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for rows in centred:
            scatter.addmm_(rows.T, rows)
        squares, right = torch.linalg.eigh(scatter)
        axes = right[:, -components:].flip(1)
    # QR scales each axis to unit length and stays orthonormal where a singular value is zero.
    basis = torch.linalg.qr(axes).Q.T
    return _with_fixed_signs(basis), squares[-components:].flip(0).clamp(min=0)


def _with_fixed_signs(basis: Tensor) -> Tensor:
    """Each row (K, d) with the sign that makes its entry of largest magnitude positive."""
    largest = basis.abs().argmax(dim=1, keepdim=True)
    return basis * basis.gather(1, largest).sign()
