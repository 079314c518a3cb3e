"""What is known of each class's latents: counts, means, variances and leading axes; merged, saved, loaded."""

import json
import math
import os
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .tensor_file import read_tensors, write_tensors

FORMAT_VERSION = 1
TENSORS = ("means", "squares", "axes", "variances", "missing")
COLUMNS_AT_ONCE = 4096
EXACT = 1e-13  # of the largest eigenvalue: what float64 cannot tell from 0


class Axes(NamedTuple):
    """Leading axes of a scatter matrix, the sum of outer products of centred rows."""

    axes: Tensor  # (r, d) float32, orthonormal, the entry of largest magnitude positive
    squares: Tensor  # (r,) float64, eigenvalues: sums of squares along the axes, falling, 0 beyond the rank
    missing: float  # by how much these may be too low


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of the scaled latents of every class; d = C * H * W values a picture.

    A class without pictures has the count 0 and zeros. The axes of all others are orthonormal; beyond the
    rank (n - 1, or fewer distinct pictures) their variance is 0.
    """

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # (C, H, W)
    counts: list[int]  # pictures of each class
    means: Tensor  # (n_classes, d) float64
    squares: Tensor  # (n_classes, d) float64, sums of squared deviations from the class mean
    axes: Tensor  # (n_classes, r, d) float32, by falling variance, the entry of largest magnitude positive
    variances: Tensor  # (n_classes, r) float64 along the axes, dividing by n - 1
    missing: Tensor = field(default_factory=lambda: torch.zeros(0))  # (n_classes,) float64, `uncertainty`

    def __post_init__(self) -> None:
        if not len(self.missing):
            zeros = torch.zeros(len(self.class_names), dtype=torch.float64)
            object.__setattr__(self, "missing", zeros)

    @property
    def mean(self) -> Tensor:
        """Class means (n_classes, C, H, W) float32."""
        return self.means.float().unflatten(1, self.shape)

    @property
    def pixel_variances(self) -> Tensor:
        """The variance of each latent value (n_classes, C, H, W) float32, 0 where n < 2."""
        return (self.squares / self._freedoms[:, None]).float().unflatten(1, self.shape)

    @property
    def total_variances(self) -> Tensor:
        """The variance over all directions (n_classes,) float64."""
        return self.squares.sum(dim=1) / self._freedoms

    @property
    def _freedoms(self) -> Tensor:
        return (torch.tensor(self.counts, dtype=torch.float64) - 1).clamp(min=1)

    def components(self, k: int) -> Tensor:
        """The k leading axes (n_classes, k, C, H, W) float32. Raises ValueError if fewer are known."""
        if not 0 <= k <= self.axes.shape[1]:
            raise ValueError(f"components must be in [0, {self.axes.shape[1]}], the axes known, got {k}")
        return self.axes[:, :k].unflatten(2, self.shape)

    def uncertainty(self) -> Tensor:
        """By how much `variances` may be too low, (n_classes,) float64; never too high.

        0 for what was fitted exactly; after a merge, or a fit that stopped at a tolerance, a bound.
        """
        return torch.minimum(self.missing, self._beyond()) / self._freedoms

    def merge(self, other: "Statistics") -> "Statistics":
        """The statistics of the pictures of both; classes are matched by name, new ones come last.

        Counts, means and squares are exact. The axes, as many as the larger of both has, are those of what
        both sides kept: the variance a side had beyond its own axes is missing, along any direction at most
        (n_a v_a + n_b v_b) / (n - 1), n a side's count less 1 and v the smallest variance it kept, 0 where
        its axes reach the rank. `uncertainty` adds these up over merges.
        Raises ValueError on another shape.
        """
        if other.shape != self.shape:
            raise ValueError(f"statistics must be of shape {self.shape} to be merged, got {other.shape}")
        names = (*self.class_names, *(name for name in other.class_names if name not in self.class_names))
        rank = max(self.axes.shape[1], other.axes.shape[1])
        return _stacked([_merged_class(self, other, name, rank) for name in names], names, self.shape)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one safetensors file, whole or not at all."""
        metadata = {
            "statistics_version": str(FORMAT_VERSION),
            "class_names": json.dumps(list(self.class_names)),
            "shape": json.dumps(list(self.shape)),
            "counts": json.dumps(self.counts),
        }
        write_tensors({name: getattr(self, name) for name in TENSORS}, path, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Statistics":
        """Reads what `save` wrote, equal to the bit. Raises ValueError on any other file."""
        tensors, metadata = read_tensors(path, what="statistics file")
        version = metadata.get("statistics_version", "")
        if version.isdigit() and int(version) > FORMAT_VERSION:
            raise ValueError(
                f"statistics file {path} must be of version {FORMAT_VERSION} at most, got {version}"
            )
        if not version.isdigit() or set(tensors) != set(TENSORS):
            raise ValueError(f"statistics file {path} must hold {', '.join(TENSORS)}, got {sorted(tensors)}")
        try:
            names, shape, counts = (json.loads(metadata[key]) for key in ("class_names", "shape", "counts"))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"statistics file {path} must tell class_names, shape and counts, got {error!r}"
            ) from error
        n, d, rank = len(names), math.prod(shape), tensors["axes"].shape[1:2]
        sizes = {"means": (n, d), "squares": (n, d), "axes": (n, *rank, d), "variances": (n, *rank)}
        got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if got != {**sizes, "missing": (n,)} or len(counts) != n:
            raise ValueError(
                f"statistics file {path} must hold tensors of {n} classes and {d} values, got {got}"
            )
        return cls(tuple(names), tuple(shape), counts, **tensors)

    def _beyond(self) -> Tensor:
        """Sums of squares outside the axes (n_classes,)."""
        return (self.squares.sum(dim=1) - self._freedoms * self.variances.sum(dim=1)).clamp(min=0)

    def _bound(self, c: int) -> float:
        """How large the sum of squares along one direction can be that the axes of class c do not tell."""
        rank, d = self.axes.shape[1:]
        cut = self._beyond()[c].item()
        if rank >= min(self.counts[c] - 1, d):
            cut = 0.0
        elif rank:
            cut = min(cut, (self._freedoms[c] * self.variances[c, -1]).item())
        return self.missing[c].item() + cut

    def _rows(self, c: int) -> Tensor:
        """Rows (r, d) float64 with the scatter that the axes of class c tell."""
        return (self._freedoms[c] * self.variances[c]).sqrt()[:, None] * self.axes[c].double()


class _Class(NamedTuple):
    pictures: int
    mean: Tensor
    squares: Tensor
    axes: Axes


def _merged_class(a: Statistics, b: Statistics, name: str, rank: int) -> _Class:
    """One class of a merge; either side may lack it."""
    sides = [(s, s.class_names.index(name)) for s in (a, b) if name in s.class_names]
    present = [(s, c) for s, c in sides if s.counts[c]]
    d = a.means.shape[1]
    count, rows, missing = 0, [], 0.0
    mean = squares = torch.zeros(d, dtype=torch.float64)
    for s, c in present:
        more = s.counts[c]
        apart = s.means[c] - mean
        between = count * more / (count + more)  # 0 for the first side
        mean = mean + apart * (more / (count + more))
        squares = squares + s.squares[c] + between * apart**2
        rows += [s._rows(c), between**0.5 * apart[None]]
        missing += s._bound(c)
        count += more
    if not present:
        return _Class(0, mean, squares, Axes(torch.zeros(rank, d), torch.zeros(rank).double(), 0.0))
    ours, c = present[0]
    if len(present) == 1 and ours.axes.shape[1] == rank:
        kept = Axes(ours.axes[c], ours._freedoms[c] * ours.variances[c], ours.missing[c].item())
        return _Class(count, mean, squares, kept)
    return _Class(count, mean, squares, axes_of_rows(torch.cat(rows), rank)._replace(missing=missing))


def _stacked(classes: list[_Class], names: tuple[str, ...], shape: tuple[int, int, int]) -> Statistics:
    freedoms = torch.tensor([max(found.pictures - 1, 1) for found in classes], dtype=torch.float64)
    return Statistics(
        class_names=names,
        shape=shape,
        counts=[found.pictures for found in classes],
        means=torch.stack([found.mean for found in classes]),
        squares=torch.stack([found.squares for found in classes]),
        axes=torch.stack([found.axes.axes for found in classes]),
        variances=torch.stack([found.axes.squares for found in classes]) / freedoms[:, None],
        missing=torch.tensor([found.axes.missing for found in classes], dtype=torch.float64),
    )


def axes_of_rows(rows: Tensor, rank: int, *, mean: Tensor | None = None) -> Axes:
    """Leading axes of a few rows (n, d) less mean (d,) float64, exactly, from their n x n products."""
    mean = rows.new_zeros(rows.shape[1]) if mean is None else mean
    columns = [slice(first, first + COLUMNS_AT_ONCE) for first in range(0, len(mean), COLUMNS_AT_ONCE)]
    products = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for some in columns:
        part = rows[:, some].double() - mean[some]
        products.addmm_(part, part.T)
    squares, left = torch.linalg.eigh(products)
    leading = left.flip(1)[:, :rank]
    axes = torch.cat([(rows[:, some].double() - mean[some]).T @ leading for some in columns])
    return finished_axes(axes, squares.flip(0)[:rank], rank)


def finished_axes(columns: Tensor, squares: Tensor, rank: int, *, negligible: float = EXACT) -> Axes:
    """Orthogonal columns (d, k <= rank) of any length as axes, filled up to rank; squares: (k,), falling.

    negligible: what is 0 among the squares, as a part of the largest.
    """
    d, k = columns.shape
    full = torch.zeros(d, rank, dtype=torch.float64, device=columns.device)
    full[:, :k] = columns
    kept = torch.zeros(rank, dtype=torch.float64)
    kept[:k] = squares.cpu()
    kept[kept <= negligible * kept[:1]] = 0
    # Householder's QR scales each axis to unit length and stays orthonormal where a column is zero.
    return Axes(_with_fixed_signs(torch.linalg.qr(full).Q.T.cpu()).float(), kept, 0.0)


def _with_fixed_signs(axes: Tensor) -> Tensor:
    """Each row (r, d) so that its entry of largest magnitude, the first of equals, is positive."""
    if not axes.numel():
        return axes
    size = axes.abs()
    # Equal but for rounding: otherwise it would choose the sign.
    largest = (size >= (1 - 1e-6) * size.amax(dim=1, keepdim=True)).byte().argmax(dim=1, keepdim=True)
    return axes * axes.gather(1, largest).sign()
