"""What a pipeline tells its UNet beside latents and timestep, read off a call of its own."""

from __future__ import annotations

from typing import Any

import torch

from .generate import sampling_with


def told_to_unet(
    pipeline: Any,
    prompts: str | list[str],
    scheduler: Any,
    *,
    height: int,
    width: int,
    guidance_scale: float,
    negative_prompt: str | None = None,
) -> dict[str, Any]:
    """The keyword arguments of the UNet's first call: the text's embeddings, XL's sizes, and the like.

    One row a prompt, with guidance the negative prompts' rows first. The picture of the one step that is
    taken is thrown away.
    """
    calls: list[dict[str, Any]] = []
    unet, factor = pipeline.unet, pipeline.vae_scale_factor
    rows = 1 if isinstance(prompts, str) else len(prompts)
    latents = torch.zeros(rows, unet.config.in_channels, height // factor, width // factor)
    hook = unet.register_forward_pre_hook(lambda _, args, told: calls.append(told), with_kwargs=True)
    try:
        with sampling_with(pipeline, scheduler.from_config(scheduler.config)):
            pipeline(
                prompts,
                negative_prompt=negative_prompt,
                height=height,
                width=width,
                num_inference_steps=1,
                guidance_scale=guidance_scale,
                latents=latents.to(pipeline._execution_device, unet.dtype),
                output_type="latent",
            )
    finally:
        hook.remove()
    return calls[0]
