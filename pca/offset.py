"""Noising and target of a training step whose last timesteps start from the start distribution."""

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def offset_target(
    x_0: Tensor,
    x_start: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    *,
    alphas_cumprod: Tensor,
    offset_from: int,
    prediction_type: str = "epsilon",
) -> tuple[Tensor, Tensor]:
    """Noisy latents and target when timesteps >= offset_from start at x_start instead of x_0.

    x_0, x_start, noise: (B, C, H, W) scaled latents; timesteps: (B,) in [0, T); alphas_cumprod: (T,) float32.
    Returns (noisy_latents, target), both float32 and shaped like x_0.
    Raises ValueError on an unknown prediction_type or alphas_cumprod below float32.
    Source: METHODS 1, "Training" (the offset only replaces the noise).
    """
    if prediction_type not in PREDICTION_TYPES:
        allowed = ", ".join(PREDICTION_TYPES)
        raise ValueError(f"prediction_type must be one of {allowed}, got {prediction_type!r}")
    if torch.finfo(alphas_cumprod.dtype).bits < 32:
        raise ValueError(f"alphas_cumprod must be float32 or better, got {alphas_cumprod.dtype}")

    a = alphas_cumprod.to(timesteps.device, torch.float32)[timesteps].view(-1, *[1] * (x_0.ndim - 1))
    signal, spread = a**0.5, (1 - a) ** 0.5

    # Zero strength outside the range leaves the noise as it is, bit for bit, without a branch on data.
    in_range = (timesteps >= offset_from).view_as(a)
    strength = torch.where(in_range, (a / (1 - a)) ** 0.5, 0.0)
    eps_new = noise + strength * (x_start - x_0)

    noisy_latents = signal * x_0 + spread * eps_new
    if prediction_type == "epsilon":
        return noisy_latents, eps_new
    if prediction_type == "v_prediction":
        return noisy_latents, signal * eps_new - spread * x_0
    return noisy_latents, x_0
