"""Aspect buckets: portrait, square and landscape pictures, each at the size that cuts or pads them least."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True, eq=False)
class Buckets:
    """Sizes (height, width) in pixels, and for each picture which of them it is given.

    bucket_ids: (N,) int64, numbers in sizes.
    Raises ValueError on no sizes, one twice, one that is no positive multiple of 8, and an id out of range.
    """

    sizes: list[Size]
    bucket_ids: torch.Tensor

    def __post_init__(self) -> None:
        check_sizes(self.sizes)
        outside = [i for i in self.bucket_ids.tolist() if not 0 <= i < len(self.sizes)]
        if outside:
            raise ValueError(f"bucket ids must be in [0, {len(self.sizes)}), got {outside[0]}")

    def __len__(self) -> int:
        return len(self.bucket_ids)

    def of(self, size: Size) -> torch.Tensor:
        """Indices (n,) int64 of the pictures in the bucket of that size.

        Raises ValueError, with the sizes there are, if there is none.
        """
        if size not in self.sizes:
            raise ValueError(f"bucket must be one of {', '.join(map(_text, self.sizes))}, got {_text(size)}")
        return torch.eq(self.bucket_ids, self.sizes.index(size)).nonzero().flatten()

    def counts(self) -> dict[Size, int]:
        """Pictures in each bucket, in the order of sizes."""
        numbers = torch.bincount(self.bucket_ids, minlength=len(self.sizes)).tolist()
        return dict(zip(self.sizes, numbers, strict=True))


def check_sizes(sizes: Sequence[Size]) -> None:
    """Raises ValueError on no sizes, one that is no positive multiple of 8, and one that comes twice."""
    if not sizes:
        raise ValueError("buckets must have a size, got none")
    for i, size in enumerate(sizes):
        if any(not isinstance(side, int) or side <= 0 or side % 8 for side in size):
            raise ValueError(f"bucket sizes must be positive multiples of 8, got {_text(size)}")
        if size in sizes[:i]:
            raise ValueError(f"bucket sizes must differ, got {_text(size)} twice")


def assign_buckets(
    picture_sizes: Iterable[Size], sizes: Iterable[Size], *, allow_empty: bool = False
) -> Buckets:
    """Each picture to the bucket of the nearest aspect ratio, as a factor; of two as near, to the first.

    picture_sizes, sizes: (height, width) in pixels. allow_empty: for part of a catalogue, as the held-out
    pictures are.
    Raises ValueError on sizes as `Buckets` does, and naming the buckets left without pictures.
    """
    pictures, sizes = list(picture_sizes), [(size[0], size[1]) for size in sizes]
    check_sizes(sizes)
    ids = [min(range(len(sizes)), key=lambda i: _distance(size, sizes[i])) for size in pictures]
    buckets = Buckets(sizes, torch.tensor(ids, dtype=torch.long))
    empty = [size for size, count in buckets.counts().items() if not count]
    if empty and not allow_empty:
        lacking = _lacking(empty, pictures, buckets)
        raise ValueError(f"every bucket must have pictures, got none for {lacking}")
    return buckets


def _lacking(empty: list[Size], pictures: list[Size], buckets: Buckets) -> str:
    """The empty buckets, each with the picture that came nearest, and what the others hold."""
    words = []
    for size in empty:
        nearest = min(pictures, key=lambda picture: _distance(picture, size), default=None)
        words.append(f"{_text(size)} (nearest: {_text(nearest) if nearest else 'no picture at all'})")
    filled = [f"{_text(size)}: {count}" for size, count in buckets.counts().items() if count]
    return ", ".join(words) + (f"; pictures of the others: {', '.join(filled)}" if filled else "")


def _distance(one: Size, other: Size) -> float:
    # Rounded, so that a ratio and its inverse are as far from 1 as each other.
    return round(abs(math.log(one[0] * other[1] / (one[1] * other[0]))), 9)


def _text(size: Size) -> str:
    return " x ".join(map(str, size))
