"""Training objectives that people use against a muted backdrop, in the place of `offset_target`.

x_0, x_start, noise: (B, C, H, W) scaled latents; timesteps: (B,); schedule: `offset_target`'s keywords.
Each returns (noisy_latents, target).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from onbrand.pca import offset_target
from torch import Tensor

Objective = Callable[..., tuple[Tensor, Tensor]]


def same_timesteps(
    x_0: Tensor, x_start: Tensor, noise: Tensor, timesteps: Tensor, **schedule: Any
) -> tuple[Tensor, Tensor]:
    """The plain objective, in a training that draws its timesteps as offset training does."""
    return offset_target(x_0, x_0, noise, timesteps, **schedule)


def noise_offset(
    x_0: Tensor, x_start: Tensor, noise: Tensor, timesteps: Tensor, *, strength: float, **schedule: Any
) -> tuple[Tensor, Tensor]:
    """The noise with so much of a value a channel on top, as diffusers' `--noise_offset`.

    Of H x W latents it makes the noise's mean sqrt(1 + strength^2 H W) times as wide.
    """
    shift = torch.randn(*noise.shape[:2], 1, 1, device=noise.device)
    return offset_target(x_0, x_start, noise + strength * shift, timesteps, **schedule)


def input_perturbation(
    x_0: Tensor, x_start: Tensor, noise: Tensor, timesteps: Tensor, **schedule: Any
) -> tuple[Tensor, Tensor]:
    """Latents noised a tenth more than the target says, as diffusers' `--input_perturbation 0.1`."""
    more = noise + 0.1 * torch.randn_like(noise)
    noisy_latents, _ = offset_target(x_0, x_start, more, timesteps, **schedule)
    return noisy_latents, offset_target(x_0, x_start, noise, timesteps, **schedule)[1]


def multi_resolution(
    x_0: Tensor, x_start: Tensor, noise: Tensor, timesteps: Tensor, *, discount: float, **schedule: Any
) -> tuple[Tensor, Tensor]:
    """Pyramid noise: noise of ever coarser grids on top, each `discount` as strong, scaled to deviation 1.

    As trainers have it: layer i, of at most ten, has sides r^i times shorter with an r from 2 to 4 of its own
    draw, the first is as fine as the noise, the last one value wide.
    """
    height, width = noise.shape[-2:]
    layered, i, coarse = noise, 0, (int(height), int(width))
    while i < 10:
        layer = torch.randn(*noise.shape[:2], *coarse, device=noise.device)
        layered = layered + discount**i * F.interpolate(layer, size=(height, width), mode="bilinear")
        if min(coarse) == 1:
            break
        i += 1
        shrink = float(2 + 2 * torch.rand(())) ** i
        coarse = (max(1, int(height / shrink)), max(1, int(width / shrink)))
    return offset_target(x_0, x_start, layered / layered.std(), timesteps, **schedule)
