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


def noise_offset(
    x_0: Tensor, x_start: Tensor, noise: Tensor, timesteps: Tensor, **schedule: Any
) -> tuple[Tensor, Tensor]:
    """The noise with .1 of a value a channel on top, as diffusers' `--noise_offset 0.1`."""
    shift = torch.randn(*noise.shape[:2], 1, 1, device=noise.device)
    return offset_target(x_0, x_start, noise + 0.1 * shift, timesteps, **schedule)


def input_perturbation(
    x_0: Tensor, x_start: Tensor, noise: Tensor, timesteps: Tensor, **schedule: Any
) -> tuple[Tensor, Tensor]:
    """Latents noised a tenth more than the target says, as diffusers' `--input_perturbation 0.1`."""
    more = noise + 0.1 * torch.randn_like(noise)
    noisy_latents, _ = offset_target(x_0, x_start, more, timesteps, **schedule)
    return noisy_latents, offset_target(x_0, x_start, noise, timesteps, **schedule)[1]


def multi_resolution(
    x_0: Tensor, x_start: Tensor, noise: Tensor, timesteps: Tensor, **schedule: Any
) -> tuple[Tensor, Tensor]:
    """Noise of ever coarser grids on top, each .3 as strong as the one before, scaled back to deviation 1."""
    size = (int(noise.shape[-2]), int(noise.shape[-1]))
    layered, shrunk, weight = noise, size, 1.0
    while min(shrunk) > 1:
        shrunk, weight = (shrunk[0] // 2, shrunk[1] // 2), 0.3 * weight
        coarse = torch.randn(*noise.shape[:2], *shrunk, device=noise.device)
        layered = layered + weight * F.interpolate(coarse, size=size, mode="bilinear")
    return offset_target(x_0, x_start, layered / layered.std(), timesteps, **schedule)
