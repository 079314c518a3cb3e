"""From scaled latents to pictures: a VAE's own values, and what its decoder makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..pca.fingerprint import runs_on
from .generate import batch_that_fits
from .picture import precise


def unscaled(vae: Any, latents: Tensor) -> Tensor:
    """A VAE's own values of scaled latents (B, C, h, w); by channel statistics where its config has them."""
    config = vae.config
    own = [config.get(name) for name in ("latents_mean", "latents_std")]
    if None not in own:
        mean, std = (latents.new_tensor(values)[:, None, None] for values in own)
        return latents / config.scaling_factor * std + mean
    return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) float32 of scaled latents, [-1, 1] is the range shown, unclipped; differentiable.

    With a gradient the decoder keeps its input alone and runs again on the way back.
    """
    return checkpointed(
        lambda z: vae.decode(z.to(vae.dtype), return_dict=False)[0].float(), unscaled(vae, latents)
    )


@torch.no_grad()
def pictures_of(vae: Any, latents: Tensor) -> list[Image.Image]:
    """Pictures of scaled latents (B, C, h, w) on any device, so many at a time as fit."""
    pictures: list[Image.Image] = []
    with precise(vae):
        for part in latents.split(batch_that_fits(latents.shape[-2] * latents.shape[-1])):
            pictures += VaeImageProcessor().postprocess(decode(vae, part.to(runs_on(vae))))
    return pictures


def checkpointed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), which keeps x alone for the gradient and runs again on the way back."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return function(x)
    result: Tensor = checkpoint(function, x, use_reentrant=False)
    return result
