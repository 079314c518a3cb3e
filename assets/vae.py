"""The tiny base's autoencoder: 64x64x3 pictures to 16x16x4 latents and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from .loop import optimise

STEPS, BATCH, LEARNING_RATE = 3600, 16, 2e-3
BRIGHTNESS_GAIN = 2.0


def tiny_vae() -> AutoencoderKL:
    """An untrained AutoencoderKL of SD's form with 0.65 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def train_vae(pictures: np.ndarray, *, work: Path, steps: int = STEPS) -> AutoencoderKL:
    """Trains on (N, 64, 64, 3) uint8 pictures and sets the scaling factor for unit std of their latents.

    The loss is L1 on pixels and on their differences, a small KL term, and a pull of the first channel
    towards the local brightness. SD's own VAE codes white far from zero; a code with white near zero
    would have no leak to fix (METHODS 1, "Laboratory scale"), and nothing else in this loss would decide
    it.
    """
    torch.manual_seed(0)
    vae = tiny_vae().to(memory_format=torch.channels_last)

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(pictures), (BATCH,), generator=generator)
        pixels = to_pixels(pictures[rows.numpy()])
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        brightness = F.avg_pool2d(pixels, 4).mean(1) * BRIGHTNESS_GAIN
        return (
            F.l1_loss(decoded, pixels)
            + 0.5 * _difference_loss(decoded, pixels)
            + F.mse_loss(decoded, pixels)
            + 1e-6 * posterior.kl().mean()
            + 0.02 * F.mse_loss(posterior.mean[:, 0], brightness)
        )

    optimise(vae, loss_of, name="vae", work=work, steps=steps, learning_rate=LEARNING_RATE)
    vae.eval()
    with torch.no_grad():
        sample = torch.cat(
            [
                vae.encode(to_pixels(pictures[i : i + 64])).latent_dist.mean
                for i in range(0, min(1024, len(pictures)), 64)
            ]
        )
    vae.register_to_config(scaling_factor=round(1 / sample.std().item(), 5))
    return vae


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _difference_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """L1 between horizontal and vertical neighbours' differences: keeps edges sharp."""
    error = a - b
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
