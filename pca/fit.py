"""Counts, means, variances and leading axes of scaled latents, in few passes and bounded memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .krylov import EXTRA, MAX_PASSES, leading_axes
from .passes import Batch, Pictures, Processes, Together, Work, chunk_rows
from .statistics import Axes, Statistics, axes_of_rows, finished_axes

GRAM_ROWS = 512  # up to so many pictures a class's axes are exact, from the products of its pictures
SCATTER_WIDTH = 1024  # and up to so many values a picture, from the products of the values
NEARLY_ALL = 8  # and where there are no more of either than this many times the axes
COLUMNS_AT_ONCE = 1024
HELD_BYTES = 2**29  # of a group of classes: pictures, scatter matrices, Krylov blocks


def fit_statistics(
    latents: Tensor | Iterable[Batch],
    class_ids: Tensor | None = None,
    *,
    class_names: Sequence[str],
    components: int = 0,
    reserve: int = 0,
    allow_empty: bool = False,
    processes: Processes | None = None,
    device: str | torch.device = "cpu",
    work: Path | None = None,
    name_of: Callable[[int], str] | None = None,
) -> Statistics:
    """Mean, variances and leading axes of every class.

    latents: (N, C, H, W) scaled latents with class_ids (N,), or a re-iterable of such pairs of tensors; if
    it has a method `of(class_ids)`, that is asked for the pictures of some classes alone.
    components: axes every class must have; reserve: further ones, as far as d = C * H * W allows.
    allow_empty: a class without pictures gets zeros and the count 0.
    processes: those of a run, each of which passes its own share of the pictures, none if there are none for
    it; all get the same statistics.
    work: a folder for what is finished, named by the caller after all of the above; what is found there is
    not computed again. name_of: what the picture at a position of the first pass is called in an error.

    Axes are exact in classes of at most GRAM_ROWS pictures, for latents of at most SCATTER_WIDTH values, and
    where n or d is at most NEARLY_ALL times their number; others reach the tolerance of `leading_axes`.
    Pictures are read once for the moments and, if there are axes, once more; up to MAX_PASSES times more
    where a class has neither exact axes nor room in HELD_BYTES. A source without `of` is walked over as a
    whole for each group of classes that fills HELD_BYTES. Memory: 16 bytes a value of each class, the axes,
    HELD_BYTES (or NEARLY_ALL times one class's axes, if that is more) and one class's Krylov blocks, 16 bytes
    a value of MAX_PASSES * (axes + EXTRA) columns; the number of pictures adds nothing.
    Raises ValueError on latents that are not finite or of mixed shape, on unknown class ids, on a class
    without pictures, on more components than a class's pictures or a latent's values allow, and on pictures
    that are not the same on every pass.
    Source: METHODS 1, "Start distribution Q".
    """
    for name, number in (("components", components), ("reserve", reserve)):
        if number < 0:
            raise ValueError(f"{name} must be 0 or more, got {number}")
    together = Together(processes)
    pictures = Pictures(latents, class_ids, class_names=class_names, device=device, name_of=name_of)
    finished = Work(work, together)
    moments = _moments(pictures, together, finished)
    d = moments.means.shape[1]
    if components > d:
        raise ValueError(f"components must be at most {d}, the values of a latent, got {components}")
    check_counts(moments.counts.tolist(), class_names, components=components, allow_empty=allow_empty)
    rank = min(components + reserve, d)
    search = _AxesSearch(pictures, together, moments, rank, components or rank)
    found = search.run(finished) if rank else {}
    nothing = Axes(torch.zeros(rank, d), torch.zeros(rank, dtype=torch.float64), 0.0)
    axes = [found.get(c, nothing) for c in range(len(class_names))]
    return Statistics(
        class_names=tuple(class_names),
        shape=moments.shape,
        counts=moments.counts.tolist(),
        means=moments.means,
        squares=moments.squares,
        axes=torch.stack([one.axes for one in axes]),
        variances=torch.stack([one.squares for one in axes]) / (moments.counts[:, None] - 1).clamp(min=1),
        missing=torch.tensor([one.missing for one in axes], dtype=torch.float64),
    )


class _Moments(NamedTuple):
    """Of the pictures of all processes, on the CPU."""

    shape: tuple[int, int, int]
    counts: Tensor  # (n_classes,) int64
    means: Tensor  # (n_classes, d) float64
    squares: Tensor  # (n_classes, d) float64, sums of squared deviations from the mean


def _moments(pictures: Pictures, together: Together, finished: Work) -> _Moments:
    """The first pass."""
    n = len(pictures.class_names)
    shapes = {"shape": (3,), "counts": (n,), "means": (n, None), "squares": (n, None)}
    [found] = finished.find(["moments"], shapes)
    if found is None:
        shape, counts, means, squares = _own_moments(pictures, together)
        if together.several:
            weighted, own_means, own = counts[:, None] * means, means, counts[:, None]
            counts = together.sum(counts)
            means = together.sum(weighted) / counts.clamp(min=1)[:, None]
            squares = together.sum(squares + own * (own_means - means) ** 2)
        found = {"shape": torch.tensor(shape), "counts": counts, "means": means, "squares": squares}
        finished.write("moments", found)
    c, h, w = found["shape"].tolist()
    return _Moments((c, h, w), found["counts"], found["means"], found["squares"])


def _own_moments(pictures: Pictures, together: Together) -> tuple[torch.Size, Tensor, Tensor, Tensor]:
    """Latent shape, and counts, means and squares of this process's pictures (Chan, Golub and LeVeque)."""
    counts = torch.zeros(len(pictures.class_names), dtype=torch.long)
    known: dict[int, tuple[Tensor, Tensor]] = {}
    problem: Exception | None = None
    try:
        for c, rows in pictures.check_and_walk():
            n, more = int(counts[c]), len(rows)
            mean, squares = _mean_and_squares(rows)
            if n:
                apart = mean - known[c][0]
                mean = known[c][0] + apart * (more / (n + more))
                squares += known[c][1] + apart.square_() * (n * more / (n + more))
            known[c] = mean, squares
            counts[c] += more
    except Exception as error:  # raised once the other processes know, so that none waits for ever
        problem = error
    shape = pictures.common_shape(together, problem)
    moments = torch.zeros(2, len(counts), shape.numel(), dtype=torch.float64)
    for c, both in known.items():
        moments[0, c], moments[1, c] = both
    return shape, counts, moments[0], moments[1]


def _mean_and_squares(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and squared deviations from it, (d,) float64 each, of rows (m, d)."""
    means, squares = [], []
    for part in rows.split(COLUMNS_AT_ONCE, dim=1):  # what fits the processor's cache is four times as fast
        part = part.double()
        means.append(part.mean(dim=0))
        squares.append((part - means[-1]).square_().sum(dim=0))
    return torch.cat(means), torch.cat(squares)


def check_counts(
    counts: Sequence[int], class_names: Sequence[str], *, components: int, allow_empty: bool
) -> None:
    """Raises ValueError on no pictures, a class without, and more components than its pictures allow."""
    if not any(counts):
        raise ValueError("latents must hold at least one picture, got none")
    for name, count in zip(class_names, counts, strict=True):
        if count == 0 and not allow_empty:
            raise ValueError(f"class {name!r} must have at least one picture, got 0")
        if components > count - 1 and count:
            raise ValueError(
                f"components must be at most n - 1 in every class: "
                f"class {name!r} has n = {count} pictures, got components = {components}"
            )


class _AxesSearch:
    """The further passes, each over a group of classes; rank: axes a class; converged: how many of them must
    reach the tolerance."""

    def __init__(
        self, pictures: Pictures, together: Together, moments: _Moments, rank: int, converged: int
    ) -> None:
        self.pictures, self.together, self.rank, self.converged = pictures, together, rank, converged
        self.counts, self.d = moments.counts.tolist(), moments.means.shape[1]
        self.means = moments.means
        self.selective = pictures.selective(together)
        self.room = torch.empty(0)

    def run(self, finished: Work) -> dict[int, Axes]:
        """The axes of every class with pictures; each class is kept as soon as it is done."""
        classes = [c for c, count in enumerate(self.counts) if count]
        shapes = {"axes": (self.rank, self.d), "squares": (self.rank,), "missing": (1,)}
        kept = finished.find([f"class-{c}" for c in classes], shapes)
        done = {c: part for c, part in zip(classes, kept, strict=True) if part is not None}
        for way, group in self._groups([c for c in classes if c not in done]):
            for c, found in way(group):
                found.squares[self.counts[c] - 1 :] = 0
                missing = torch.tensor([found.missing], dtype=torch.float64)
                part = {"axes": found.axes, "squares": found.squares, "missing": missing}
                done[c] = {name: self.together.first(tensor) for name, tensor in part.items()}
                finished.write(f"class-{c}", done[c])
        return {c: Axes(part["axes"], part["squares"], part["missing"].item()) for c, part in done.items()}

    def _exact(self, c: int) -> bool:
        n, d = self.counts[c], self.d
        return n <= GRAM_ROWS or d <= SCATTER_WIDTH or min(n, d) <= NEARLY_ALL * self.rank

    def _groups(self, classes: Sequence[int]) -> Iterator[tuple[Callable, list[int]]]:
        """Classes that are worked on in one way and together need at most HELD_BYTES."""
        ways: dict[Callable, list[tuple[int, int]]] = {}
        for c in classes:
            n, d = self.counts[c], self.d
            if self._exact(c) and n > d:
                ways.setdefault(self._by_scatter, []).append((c, 8 * d * d))
            elif self._exact(c) or 4 * n * d <= HELD_BYTES:
                ways.setdefault(self._by_rows, []).append((c, 4 * n * d))
            else:
                block = 16 * d * (self.rank + EXTRA)
                ways.setdefault(self._by_passes, []).append((c, MAX_PASSES * block))
        # Small groups are quicker, but each is a walk over all where a source cannot be asked for some.
        limit = HELD_BYTES // 4 if self.selective else HELD_BYTES
        for way, needs in ways.items():
            group: list[int] = []
            held = 0
            for c, size in needs:
                if group and held + size > limit:
                    yield way, group
                    group, held = [], 0
                group.append(c)
                held += size
            yield way, group

    def _walk(self, group: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """One pass over a group. Raises ValueError at its end if the pictures are not those of the first."""
        seen = dict.fromkeys(group, 0)
        for c, rows in self.pictures.walk(group):
            seen[c] += len(rows)
            yield c, rows
        for c, now in zip(group, self.together.sum(torch.tensor(list(seen.values()))).tolist(), strict=True):
            if now != self.counts[c]:
                name, n = self.pictures.class_names[c], self.counts[c]
                raise ValueError(
                    f"latents must be the same on every pass, got {n} and then {now} of class {name!r}"
                )

    def _mean(self, c: int) -> Tensor:
        return self.means[c].to(self.pictures.device)

    def _by_scatter(self, group: Sequence[int]) -> Iterator[tuple[int, Axes]]:
        means = {c: self._mean(c) for c in group}
        scatters = {c: torch.zeros(self.d, self.d, dtype=torch.float64).to(means[c]) for c in group}
        for c, rows in self._walk(group):
            centred = rows.double() - means[c]
            scatters[c].addmm_(centred.T, centred)
        for c in group:
            squares, axes = torch.linalg.eigh(self.together.sum(scatters.pop(c)))
            leading = slice(self.d - self.rank, None)
            yield c, finished_axes(axes[:, leading].flip(1), squares[leading].flip(0), self.rank)

    def _by_rows(self, group: Sequence[int]) -> Iterator[tuple[int, Axes]]:
        """Each class's pictures are held, so that they are read once."""
        held = dict(zip(group, self._room([self.counts[c] for c in group]), strict=True))
        own = dict.fromkeys(group, 0)
        for c, rows in self._walk(group):
            some = held[c][own[c] : own[c] + len(rows)]
            some.copy_(rows[: len(some)])
            own[c] += len(rows)
        before = self.together.before(torch.tensor(list(own.values()))).tolist()
        for c, first in zip(group, before, strict=True):
            rows = held[c]
            if self._exact(c):
                if self.together.several:
                    rows[first : first + own[c]] = rows[: own[c]].clone()
                    rows[:first], rows[first + own[c] :] = 0, 0
                yield c, axes_of_rows(self.together.sum(rows), self.rank, mean=self._mean(c))
            else:
                rows = rows[: own[c]].sub_(self._mean(c).float())
                yield c, self._leading_axes([c], partial(_held_walk, rows))[c]

    def _room(self, sizes: Sequence[int]) -> Sequence[Tensor]:
        """Rows (size, d) for each class of a group; the memory is that of the group before."""
        if len(self.room) < sum(sizes):
            self.room = torch.empty(sum(sizes), self.d, device=self.pictures.device)
        return self.room[: sum(sizes)].split(list(sizes))

    def _by_passes(self, group: Sequence[int]) -> Iterator[tuple[int, Axes]]:
        """The pictures are read again for every product."""
        means = {c: self._mean(c).float() for c in group}

        def walk(classes: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
            return ((c, rows.float() - means[c]) for c, rows in self._walk(classes))

        yield from self._leading_axes(group, walk).items()

    def _leading_axes(
        self, group: Sequence[int], walk: Callable[[Sequence[int]], Iterator[tuple[int, Tensor]]]
    ) -> dict[int, Axes]:
        """walk: one pass over the centred rows (m, d) float32 of some classes' pictures in this process."""

        def apply(blocks: dict[int, Tensor]) -> dict[int, Tensor]:
            # Transposed, since a product with few rows is faster than one with few columns.
            products = {c: torch.zeros_like(block.T, dtype=torch.float64) for c, block in blocks.items()}
            for c, rows in walk(list(blocks)):
                products[c] += (rows @ blocks[c]).T @ rows
            return {c: self.together.sum(product).T for c, product in products.items()}

        return leading_axes(
            apply,
            group,
            self.d,
            self.rank,
            converged=self.converged,
            agree=self.together.first,
            device=self.pictures.device,
        )


def _held_walk(rows: Tensor, classes: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    [c] = classes
    return ((c, some) for some in rows.split(chunk_rows(rows.shape[1])))
