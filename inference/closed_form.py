"""The exact denoiser of a finite set of pictures, which a network that memorises it all approaches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from ..pca import StartDistribution
from ..pca.float64 import float64_device
from ..pca.offset import PREDICTION_TYPES

CHUNK = 64  # pictures compared at a time: 8 MiB in float64 at 4 x 64 x 64

Batches = Iterable[tuple[Tensor, ...]]


def optimal_x_0(
    x: Tensor,
    latents_batches: Batches,
    alpha_bar: float,
    *,
    start: StartDistribution | None = None,
    class_id: int | None = None,
) -> Tensor:
    """E[x_0 | x] (B, C, H, W), where x_0 is one of these pictures, each as likely.

    float64, on x's device, or on the CPU where that has none.

    x: (B, C, H, W) noisy latents; alpha_bar: the power a of x_0 in them; latents_batches, read once: batches
    of scaled latents (n, C, H, W) and their class_ids (n,), with text_embeds (n, E) for a third where start
    depends on text. class_id: the pictures of this class alone, None for all of them.
    start: x holds sqrt(a) x_start, each picture's own projection, instead of sqrt(a) x_0, as in training
    inside the offset range. Without gradients.
    Raises ValueError on an alpha_bar outside [0, 1), on latents of another shape than x, where there are no
    pictures, and as `start.project` does.
    Source: METHODS 6, "the best denoiser".
    """
    if not 0 <= alpha_bar < 1:
        raise ValueError(f"alpha_bar must be in [0, 1), got {alpha_bar}")
    with torch.no_grad():
        x = x.to(float64_device(x.device), torch.float64)
        seen = x.flatten(1)
        highest = seen.new_full((len(seen), 1), -math.inf)
        total, weighted = torch.zeros_like(highest), torch.zeros_like(seen)
        for latents, shown in _pictures(latents_batches, x, start=start, class_id=class_id):
            # ||x - sqrt(a) y||^2 without ||x||^2, which all have in common
            overlap = alpha_bar**0.5 * seen @ shown.T - alpha_bar / 2 * shown.square().sum(dim=1)
            logits = overlap / (1 - alpha_bar)
            raised = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
            kept, weights = (highest - raised).exp(), (logits - raised).exp()
            total = kept * total + weights.sum(dim=1, keepdim=True)
            weighted = kept * weighted + weights @ latents
            highest = raised
        if bool(torch.isneginf(highest).any()):
            what = "" if class_id is None else f" of class {class_id}"
            raise ValueError(f"latents_batches must hold at least one picture{what}, got none")
        return (weighted / total).view(x.shape)


def optimal_eps(
    x: Tensor,
    latents_batches: Batches,
    alpha_bar: float,
    *,
    start: StartDistribution | None = None,
    class_id: int | None = None,
) -> Tensor:
    """What the exact denoiser predicts for eps, (x - sqrt(a) E[x_0 | x]) / sqrt(1-a), float64 like x.

    Arguments and Raises: as `optimal_x_0`. Source: METHODS 6, "the best denoiser".
    """
    x_0 = optimal_x_0(x, latents_batches, alpha_bar, start=start, class_id=class_id)
    return (x.detach().to(x_0) - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5


class OptimalDenoiser(nn.Module):
    """The exact denoiser in the place of a Stable Diffusion pipeline's UNet: `pipeline.unet = denoiser`.

    Trained on these pictures until nothing is left to learn, with offsets where start is given, a network
    answers this. What it is told of the prompt is ignored: `of_class` is the denoiser of one class, and a
    guidance_scale changes nothing.
    latents_batches: as `optimal_x_0`, read again at every call; noise_scheduler: of training, or a pipeline's
    own: its alphas_cumprod and prediction_type. Latents stay where they are and are moved chunk by chunk.
    Raises ValueError on batches that can be read only once or are empty, a text-dependent start without
    text_embeds, an unknown prediction_type, and a timestep that is not whole.
    """

    def __init__(
        self,
        latents_batches: Batches,
        noise_scheduler: Any,
        *,
        start: StartDistribution | None = None,
        class_id: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(latents_batches, Iterator):
            kind = type(latents_batches).__name__
            raise ValueError(f"latents_batches must be readable again at every step, got a {kind}")
        first = next(iter(latents_batches), None)
        if first is None:
            raise ValueError("latents_batches must hold at least one batch, got none")
        self.prediction_type = noise_scheduler.config.prediction_type
        if self.prediction_type not in PREDICTION_TYPES:
            allowed = ", ".join(PREDICTION_TYPES)
            raise ValueError(f"prediction_type must be one of {allowed}, got {self.prediction_type!r}")
        self.latents_batches, self.class_id, self.start = latents_batches, class_id, start
        self.noise_scheduler = noise_scheduler
        self.alphas_cumprod = noise_scheduler.alphas_cumprod.double().cpu()
        channels, height, width = first[0].shape[1:]
        self.config = FrozenDict(
            in_channels=channels,
            out_channels=channels,
            sample_size=height if height == width else (height, width),
            time_cond_proj_dim=None,
            addition_embed_type=None,
        )
        self.dtype = torch.float32
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the pipeline's latents are to be."""
        return self._place.device  # type: ignore[return-value]

    def of_class(self, class_id: int | None) -> OptimalDenoiser:
        """The denoiser of one class's pictures, None for all of them; the latents are shared."""
        batches, scheduler = self.latents_batches, self.noise_scheduler
        return OptimalDenoiser(batches, scheduler, start=self.start, class_id=class_id).to(self.device)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        *,
        return_dict: bool = True,
        **ignored: Any,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """The prediction for noisy latents sample (B, C, H, W) at one timestep or (B,), like sample."""
        told = torch.as_tensor(timestep).detach().cpu().expand(len(sample))
        output = torch.empty_like(sample)
        for t in told.unique().tolist():
            rows = (told == t).nonzero()[:, 0].to(sample.device)
            output[rows] = self._predict(sample[rows].detach(), t).to(sample)
        return UNet2DConditionOutput(sample=output) if return_dict else (output,)

    def _predict(self, x: Tensor, timestep: float) -> Tensor:
        if timestep != int(timestep):
            raise ValueError(f"timestep must be whole for the exact denoiser, got {timestep}")
        a = float(self.alphas_cumprod[int(timestep)])
        offset = self.start is not None and timestep >= self.start.offset_from
        start = self.start if offset else None
        x_0 = optimal_x_0(x, self.latents_batches, a, start=start, class_id=self.class_id)
        eps = (x.to(x_0) - a**0.5 * x_0) / (1 - a) ** 0.5
        if self.prediction_type == "epsilon":
            return eps
        return x_0 if self.prediction_type == "sample" else a**0.5 * eps - (1 - a) ** 0.5 * x_0


def _pictures(
    batches: Batches, x: Tensor, *, start: StartDistribution | None, class_id: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """x_0 and what the noisy latents hold of it, (n, d) float64 on x's device, at most CHUNK at a time."""
    for batch in batches:
        if class_id is not None:
            own = (batch[1] == class_id).nonzero()[:, 0]
            batch = tuple(entry[own.to(entry.device)] for entry in batch)
        if batch[0].shape[1:] != x.shape[1:]:
            expected, got = tuple(x.shape[1:]), tuple(batch[0].shape[1:])
            raise ValueError(f"latents must be shaped {expected} each as the noisy ones, got {got}")
        if start is not None and start.needs_text and len(batch) < 3:
            raise ValueError("batches must hold text_embeds for a start that depends on text, got none")
        for first in range(0, len(batch[0]), CHUNK):
            latents, class_ids, *text = (entry[first : first + CHUNK] for entry in batch)
            shown = latents
            if start is not None:
                shown = start.project(latents, class_ids, text_embeds=text[0] if text else None)
            flat = [each.to(x.device, torch.float64).flatten(1) for each in (latents, shown)]
            yield flat[0], flat[1]
