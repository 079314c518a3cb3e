"""One training step: latents in, loss out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pca.distribution import StartDistribution
from ..pca.offset import offset_target

TEXT_AND_CONDITIONS = ("input_ids", "hidden", "pooled", "dropped", "condition")


class StepLoss(NamedTuple):
    """The loss to minimise, and each sample's plain mean squared error (B,) for the metrics."""

    loss: Tensor
    per_sample: Tensor


def training_loss(
    batch: Mapping[str, Tensor],
    *,
    denoiser: Callable[..., Tensor],
    start_distribution: StartDistribution,
    alphas_cumprod: Tensor,
    offset_from: int,
    prediction_type: str,
    min_snr_gamma: float | None = None,
) -> StepLoss:
    """The piecewise offset loss of one batch; offset_from = T gives the plain loss.

    batch: `latents, noise (B, C, H, W)` with latents scaled, `timesteps, class_ids (B,)`, what the
    denoiser reads of captions and condition pictures, and `text_embeds (B, E)` for a start distribution that
    depends on text. Source: METHODS 1, eq. 13-15.
    """
    latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
    x_start = start_distribution.project(latents, batch["class_ids"], text_embeds=batch.get("text_embeds"))
    noisy_latents, target = offset_target(
        latents,
        x_start,
        noise,
        timesteps,
        alphas_cumprod=alphas_cumprod,
        offset_from=offset_from,
        prediction_type=prediction_type,
    )
    conditions = {key: batch[key] for key in TEXT_AND_CONDITIONS if key in batch}
    model_pred = denoiser(noisy_latents, timesteps, **conditions)
    per_sample = F.mse_loss(model_pred.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
    if min_snr_gamma is None:
        return StepLoss(per_sample.mean(), per_sample.detach())
    weights = min_snr_weights(
        timesteps, alphas_cumprod=alphas_cumprod, gamma=min_snr_gamma, prediction_type=prediction_type
    )
    return StepLoss((weights * per_sample).mean(), per_sample.detach())


def min_snr_weights(
    timesteps: Tensor, *, alphas_cumprod: Tensor, gamma: float, prediction_type: str
) -> Tensor:
    """Min-SNR loss weights (B,); the offset leaves them as they are (METHODS 1, "Training").

    min(SNR, gamma) over SNR for epsilon, over SNR + 1 for v_prediction, min(SNR, gamma) itself for sample.
    """
    a = alphas_cumprod[timesteps]
    snr = a / (1 - a)
    clipped = snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        # min(snr, gamma) / snr, written so that it is 1 and not 0/0 at zero SNR
        return torch.where(snr <= gamma, torch.ones_like(snr), gamma / snr.clamp(min=gamma))
    return clipped / (snr + 1) if prediction_type == "v_prediction" else clipped
