"""What a gallery can be asked for, as differentiable functions of its pixels, to be maximised."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .diversity import SSIM_SIGMA, SSIM_WINDOW
from .pixels import Gallery, to_pixels
from .scenes import _import

Reward = Callable[[Tensor], Tensor]
PAIR_WEIGHT = 0.18  # of the gaps inside each half; with it the paper's table adds up
STABILISERS = (0.01**2, 0.03**2)  # Wang's, for pixels in [0, 1]


class BrightnessSplit(NamedTuple):
    """How a gallery splits into halves, each a number or one a gallery, of brightness in [0, 1].

    gap: between the means of its first and second half; contrast: the gap and a little of the gaps inside
    each half; margin: between the darker and the brighter half, whichever pictures they hold.
    """

    gap: float
    contrast: float
    margin: float


def ssim_diversity(pixels: Tensor) -> Tensor:
    """Minus the mean structural similarity over all pairs, -1 where pictures are equal; a scalar.

    pixels: (N, 3, H, W) in [0, 1]. Equal to minus `pairwise_ssim`, and differentiable.
    Raises ValueError on another shape, fewer than two pictures, or less than 11 pixels a side.
    """
    _check(pixels, at_least=2)
    height, width = pixels.shape[2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"pictures must be at least {SSIM_WINDOW} pixels a side for SSIM, got {width} x {height}"
        )
    first, second = _pairs(len(pixels), pixels.device)
    means = _local_mean(pixels)
    variances = _local_mean(pixels.square()) - means.square()
    mean_a, mean_b = means[first], means[second]
    covariance = _local_mean(pixels[first] * pixels[second]) - mean_a * mean_b
    c_1, c_2 = STABILISERS
    light = (2 * mean_a * mean_b + c_1) / (mean_a.square() + mean_b.square() + c_1)
    structure = (2 * covariance + c_2) / (variances[first] + variances[second] + c_2)
    return -(light * structure).mean()


def lpips_diversity(*, net: str = "alex") -> Reward:
    """A reward: the mean LPIPS over all pairs of (N, 3, H, W) pixels in [0, 1], computed where they are.

    net: "alex", "vgg" or "squeeze"; its weights are downloaded on first use.
    Raises ValueError on another net, ImportError without the lpips library and torchvision; the reward
    ValueError on another shape or fewer than two pictures.
    """
    if net not in ("alex", "vgg", "squeeze"):
        raise ValueError(f"net must be alex, vgg or squeeze, got {net!r}")
    model = _import("lpips", what="LPIPS").LPIPS(net=net, verbose=False).eval().requires_grad_(False)

    def reward(pixels: Tensor) -> Tensor:
        _check(pixels, at_least=2)
        first, second = _pairs(len(pixels), pixels.device)
        return model.to(pixels.device)(pixels[first], pixels[second], normalize=True).mean()

    reward.__name__ = f"lpips_diversity({net})"
    return reward


def brightness_split(*, weight: float = PAIR_WEIGHT) -> Reward:
    """A reward: the contrast between the first half of a gallery and the second, see `brightness_report`.

    pixels: (N, 3, H, W) in [0, 1], N even. Raises ValueError on a negative weight; the reward on another
    shape or an odd N.
    """
    if not weight >= 0:
        raise ValueError(f"weight must be at least 0, got {weight}")

    def reward(pixels: Tensor) -> Tensor:
        gap, inside = _split(brightness(pixels))
        return gap + weight * inside

    reward.__name__ = f"brightness_split({weight:g})"
    return reward


def brightness(pixels: Tensor) -> Tensor:
    """The mean value (the largest of red, green and blue) of each picture (N,), of (N, 3, H, W) in [0, 1]."""
    _check(pixels, at_least=1)
    return pixels.amax(dim=1).mean(dim=(1, 2))


def brightness_report(gallery: Gallery, *, weight: float = PAIR_WEIGHT) -> BrightnessSplit:
    """Gap, contrast and margin of a gallery of even size N.

    Of the brightnesses b the gap is |mean of the first half - mean of the second|; the contrast adds weight
    times the mean |b_i - b_j| over the pairs inside each half; the margin is the middle gap of the sorted b.
    gallery: PIL pictures of one size or (N, 3, H, W) in [0, 1].
    Raises ValueError on an odd number of pictures, or pictures as `to_pixels` rejects them.
    Source: METHODS 3, "Learned couplings".
    """
    values = brightness(torch.from_numpy(to_pixels(gallery)))
    gap, inside = _split(values)
    ordered, half = values.sort().values, len(values) // 2
    contrast, margin = gap + weight * inside, ordered[half] - ordered[half - 1]
    return BrightnessSplit(float(gap), float(contrast), float(margin))


def _split(values: Tensor) -> tuple[Tensor, Tensor]:
    """The gap between the halves of (N,) values, and the sum of the mean gaps inside each."""
    if len(values) % 2:
        raise ValueError(f"gallery must hold an even number of pictures to split, got {len(values)}")
    halves = values.reshape(2, -1)
    gap = (halves[0].mean() - halves[1].mean()).abs()
    if halves.shape[1] == 1:
        return gap, torch.zeros_like(gap)
    first, second = _pairs(halves.shape[1], values.device)
    return gap, (halves[:, first] - halves[:, second]).abs().mean(dim=1).sum()


def _local_mean(pixels: Tensor) -> Tensor:
    """Gaussian means (B, C, H - 10, W - 10) over windows that lie within the picture."""
    offsets = torch.arange(SSIM_WINDOW, device=pixels.device, dtype=pixels.dtype) - SSIM_WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    flat = pixels.flatten(0, 1)[:, None]
    blurred = functional.conv2d(flat, window[None, None, :, None])
    blurred = functional.conv2d(blurred, window[None, None, None, :])
    return blurred.reshape(*pixels.shape[:2], *blurred.shape[2:])


def _pairs(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first and the second place of every pair."""
    first, second = zip(*combinations(range(count), 2), strict=True)
    return torch.tensor(first, device=device), torch.tensor(second, device=device)


def _check(pixels: Tensor, *, at_least: int) -> None:
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels must be of shape (N, 3, H, W), got {tuple(pixels.shape)}")
    if len(pixels) < at_least:
        plural = "s" if at_least > 1 else ""
        raise ValueError(f"gallery must hold at least {at_least} picture{plural}, got {len(pixels)}")
