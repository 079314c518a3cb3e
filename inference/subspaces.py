"""Orthogonal projections of latents: a region, channels, a band of frequencies, given directions.

Each is called with latents (B, C, H, W), returns P x of their dtype, and meets P P = P = P^T to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Projection = Callable[[Tensor], Tensor]

TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Mask:
    """Keeps the entries where mask is 1. mask: (H, W) or (C, H, W) of zeros and ones, of the latents' size.

    Raises ValueError on other values, on a mask that keeps nothing or all, and, when called, on another size.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        mask = torch.as_tensor(self.mask).detach().cpu()
        if mask.ndim not in (2, 3):
            raise ValueError(f"mask must be (H, W) or (C, H, W), got shape {tuple(mask.shape)}")
        if not ((mask == 0) | (mask == 1)).all():
            wrong = mask[(mask != 0) & (mask != 1)][0]
            raise ValueError(f"mask must hold zeros and ones, got {float(wrong):.6g}")
        kept = _check_proper("mask", mask == 1)
        object.__setattr__(self, "mask", kept)

    def __call__(self, x: Tensor) -> Tensor:
        """P x."""
        if x.shape[-self.mask.ndim :] != self.mask.shape:
            size, got = tuple(x.shape[-self.mask.ndim :]), tuple(self.mask.shape)
            raise ValueError(f"mask must be of the latents' size {size}, got {got}")
        return x * self.mask.to(x.device)


@dataclass(frozen=True)
class Channels:
    """Keeps these channels of the latents, counted from 0.

    Raises ValueError on none, on repeated or negative ones, and, when called, on ones that the latents do
    not have or that are all there are.
    """

    channels: Sequence[int]

    def __post_init__(self) -> None:
        channels = tuple(self.channels)
        if not channels or len(set(channels)) < len(channels) or min(channels) < 0:
            raise ValueError(f"channels must be different numbers from 0, got {list(channels)}")
        object.__setattr__(self, "channels", channels)

    def __call__(self, x: Tensor) -> Tensor:
        """P x."""
        count = x.shape[-3]
        if max(self.channels) >= count or len(self.channels) == count:
            raise ValueError(
                f"channels must be some of 0 to {count - 1} and not all of them, got {list(self.channels)}"
            )
        kept = torch.zeros(count, 1, 1, dtype=x.dtype, device=x.device)
        kept[list(self.channels)] = 1
        return x * kept


@dataclass(frozen=True)
class Band:
    """Keeps the spatial frequencies f with low <= f < high, of each channel by itself.

    f: the length of a 2-D frequency, 0 for the constant, 1 for one that changes sign at every pixel of a row
    or column, sqrt(2) for one of both. Raises ValueError unless 0 <= low < high, and, when called, on a band
    that holds no frequency of latents of that size, or all of them.
    """

    low: float
    high: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"band must have 0 <= low < high, got {self.low:g} to {self.high:g}")

    def __call__(self, x: Tensor) -> Tensor:
        """P x."""
        height, width = x.shape[-2:]
        down = 2 * torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
        across = 2 * torch.fft.rfftfreq(width, dtype=torch.float64)
        frequency = torch.hypot(down, across)
        kept = _check_proper(
            f"band {self.low:g} to {self.high:g}", (frequency >= self.low) & (frequency < self.high)
        )
        spectrum = torch.fft.rfft2(x.double()) * kept.to(x.device)
        return torch.fft.irfft2(spectrum, s=(height, width)).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Directions:
    """Keeps what lies along orthonormal directions (K, C, H, W), such as a class's components.

    Raises ValueError on directions that are not orthonormal, not fewer than the latents' entries, and, when
    called, of another size.
    """

    directions: Tensor

    def __post_init__(self) -> None:
        given = torch.as_tensor(self.directions).detach().cpu().double()
        if given.ndim != 4 or not 0 < len(given) < given[0].numel():
            raise ValueError(
                f"directions must be (K, C, H, W) with K from 1 to less than C H W, got shape "
                f"{tuple(given.shape)}"
            )
        flat = given.flatten(1)
        error = float((flat @ flat.T - torch.eye(len(flat), dtype=torch.float64)).abs().max())
        if not error <= TOLERANCE:
            raise ValueError(f"directions must be orthonormal, got products {error:.6g} off")
        # float32 components are orthonormal to rounding only; of these a projection would not be exact
        exact = torch.linalg.qr(flat.T)[0].T
        object.__setattr__(self, "directions", exact.reshape(given.shape))

    def __call__(self, x: Tensor) -> Tensor:
        """P x."""
        if x.shape[-3:] != self.directions.shape[1:]:
            size, got = tuple(x.shape[-3:]), tuple(self.directions.shape[1:])
            raise ValueError(f"directions must be of the latents' size {size}, got {got}")
        basis = self.directions.flatten(1).to(x.device)
        return (x.flatten(1).double() @ basis.T @ basis).to(x.dtype).reshape(x.shape)


def check_projection(projection: Projection, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless P (P x) = P x and <P x, y> = <x, P y>, for noises x and y of this shape."""
    x, y = torch.randn(2, 1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept, other = projection(x), projection(y)
    if kept.shape != x.shape:
        raise ValueError(f"projection must keep the shape {tuple(x.shape)}, got {tuple(kept.shape)}")
    twice = float((projection(kept) - kept).abs().max())
    if not twice <= TOLERANCE:
        raise ValueError(f"projection must change nothing the second time, got a change of {twice:.6g}")
    skew = float(((kept * y).sum() - (x * other).sum()).abs() / (x.norm() * y.norm()))
    if not skew <= TOLERANCE:
        raise ValueError(f"projection must be orthogonal, got <Px, y> and <x, Py> {skew:.6g} |x| |y| apart")


def _check_proper(what: str, kept: Tensor) -> Tensor:
    """The boolean tensor, once some but not all of it is true."""
    if kept.all() or not kept.any():
        raise ValueError(f"{what} must keep some but not all, got {'all' if kept.any() else 'nothing'}")
    return kept
