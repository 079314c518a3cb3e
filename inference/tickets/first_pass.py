"""What a pipeline's UNet is called with at the sampler's first step, without guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...pca.distribution import StartDistribution
from ..choice import StartChoice, check_choice, choose_start
from ..start import at_first_step, start_latents
from ..text import pooled_text


def plain_unet(pipeline: Any) -> Any:
    """The UNet as it was before it was compiled: a compiled one cannot be left half way."""
    return getattr(pipeline.unet, "_orig_mod", pipeline.unet)


def expanded(pipeline: Any, text: str, tokenizer: Any) -> str:
    """A text with learnt tokens of several vectors spelled out, as the pipeline does."""
    convert = getattr(pipeline, "maybe_convert_prompt", None)
    return text if convert is None else convert(text, tokenizer)


def normalised(maps: Tensor) -> Tensor:
    """Maps (..., cells), each brought to [0, 1] by its own minimum and maximum; a level one becomes 0."""
    low, high = maps.amin(dim=-1, keepdim=True), maps.amax(dim=-1, keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def conditioning(pipeline: Any, texts: Sequence[str], *, height: int, width: int) -> dict[str, Any]:
    """What a UNet is called with for these texts, without guidance: the arguments that carry the text."""
    device = pipeline._execution_device
    encoded = pipeline.encode_prompt(
        prompt=list(texts), device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if getattr(pipeline, "text_encoder_2", None) is None:
        return {"encoder_hidden_states": encoded[0]}
    sizes = torch.tensor([[height, width, 0, 0, height, width]], device=device, dtype=encoded[0].dtype)
    added = {"text_embeds": encoded[2], "time_ids": sizes.repeat(len(texts), 1)}
    return {"encoder_hidden_states": encoded[0], "added_cond_kwargs": added}


def first_seen(scheduler: Any, steps: int, x_start: Tensor | None, eps: Tensor) -> tuple[Tensor, Tensor]:
    """What the network sees at the first step, sqrt(a) x_start + sqrt(1-a) eps, and its timestep."""
    latents = start_latents(scheduler, steps, x_start, eps)
    ready, t_0 = at_first_step(scheduler, steps)
    if hasattr(ready, "init_noise_sigma"):
        latents = ready.scale_model_input(latents * ready.init_noise_sigma, t_0)
    return latents, t_0


def first_timestep(pipeline: Any, steps: int) -> int:
    """The timestep at which the pipeline's sampler begins."""
    return int(at_first_step(pipeline.scheduler, steps)[1])


def start_of(
    pipeline: Any, texts: Sequence[str], *, class_name: str | None, start: str, size: tuple[int, int]
) -> Tensor | None:
    """x_start under each text (len(texts), C, H, W), one row if all are the same; None for pure noise."""
    distribution: StartDistribution | None = getattr(pipeline, "start_distribution", None)
    choice = StartChoice(class_name=class_name, start=start)
    check_choice(distribution, choice, latents=None)
    text_embeds = pooled_text(pipeline, texts) if choice.needs_text(distribution) else None
    x_start = choose_start(distribution, texts, 1, choice, size=size, text_embeds=text_embeds)
    return x_start[:1] if x_start is not None and bool((x_start == x_start[0]).all()) else x_start
