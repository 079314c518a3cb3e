"""Many pictures from prompts, each with its own seed, whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from ..pca import Sampler, build_scheduler


def batch_that_fits(latent_area: int) -> int:
    """Pictures at a time: 32 of up to 32 x 32 latents, 8 at 64 x 64 (512 pixels), never fewer than one."""
    return max(1, min(32, 2**15 // latent_area))


def generate(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    class_names: Sequence[str | None] | None = None,
    images: Sequence[Image.Image] | None = None,
    start: str = "mean",
    sampler: Sampler = Sampler("DDIMScheduler", 20),
    guidance_scale: float = 3.0,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
    **call: Any,
) -> list[Image.Image]:
    """One picture a prompt; each draws its noise from its own seed, so batches can be of any size.

    class_names: one a prompt, None where the prompt's prefix tells; images: a ControlNet's conditions, one a
    prompt; start: see the pipeline's call; sampler: the scheduler class, steps and spacing, on the
    checkpoint's own schedule; indices: picture i has the seed `seed + indices[i]`, `seed + i` if None, so
    that processes which share out the prompts draw what one would; advance(n) is called after every n
    pictures; call: further arguments of the pipeline. The pipeline's own scheduler is put back afterwards.
    Raises ValueError on class_names, images or indices that are not one a prompt.
    """
    indices = range(len(prompts)) if indices is None else indices
    in_step = {"class_names": class_names, "images": images, "indices": indices}
    for name, values in in_step.items():
        if values is not None and len(values) != len(prompts):
            raise ValueError(f"{name} must be one for each of {len(prompts)} prompts, got {len(values)}")
    if batch_size is None:
        batch_size = batch_that_fits(pipeline.latent_area)
    pictures: list[Image.Image] = []
    own_scheduler = pipeline.scheduler
    quiet = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    try:
        pipeline.scheduler = build_scheduler(own_scheduler, sampler)
        for first in range(0, len(prompts), batch_size):
            rows = slice(first, first + batch_size)
            batch = list(prompts[rows])
            generators = [torch.Generator().manual_seed(seed + index) for index in indices[rows]]
            if class_names is not None:
                call["class_name"] = list(class_names[rows])
            if images is not None:
                call["image"] = list(images[rows])
            if pipeline.start_distribution is not None:
                call["start"] = start
            result = pipeline(
                batch,
                num_inference_steps=sampler.steps,
                guidance_scale=guidance_scale,
                generator=generators,
                **call,
            )
            pictures += result.images
            advance(len(batch))
    finally:
        pipeline.scheduler = own_scheduler
        pipeline.set_progress_bar_config(**{"disable": False, **quiet})
    return pictures
