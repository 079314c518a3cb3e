"""Many pictures from prompts, each with its own seed, in batches that are the same however work is shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..pca import Sampler, build_scheduler
from .fresh_noise import adds_noise
from .noise import Initializer

NO_CONFIG: Mapping[str, Any] = MappingProxyType({})


def batch_that_fits(latent_area: int) -> int:
    """Pictures at a time: 32 of up to 32 x 32 latents, 8 at 64 x 64 (512 pixels), never fewer than one."""
    return max(1, min(32, 2**15 // latent_area))


def share_galleries(kinds: Sequence[Any], count: int, batch_size: int) -> list[range]:
    """Galleries to draw together: as many neighbours of one kind as fit a batch, at least one.

    kinds: one value a gallery; only equal ones are drawn together. count: pictures a gallery.
    Sums of a batch may be rounded differently from those of another. These parts do not depend on the
    number of processes: shared out whole, they give the same bits on one as on many.
    """
    most = max(1, batch_size // count)
    parts: list[range] = []
    for _, run in groupby(range(len(kinds)), key=lambda i: kinds[i]):
        places = list(run)
        first, end = places[0], places[-1] + 1
        parts += [range(at, min(at + most, end)) for at in range(first, end, most)]
    return parts


def batch_of(pipeline: Any, *, height: int | None = None, width: int | None = None) -> int:
    """How many pictures of this size (pixels; None: the default) `generate` draws at a time."""
    if height is None or width is None:
        return batch_that_fits(pipeline.latent_area)
    factor = pipeline.vae_scale_factor
    return batch_that_fits((height // factor) * (width // factor))


def build_sampler(noise_scheduler: Any, sampler: Sampler, config: Mapping[str, Any] = NO_CONFIG) -> Any:
    """The sampler's scheduler on a checkpoint's schedule (a scheduler or its config), with config on top."""
    scheduler = build_scheduler(noise_scheduler, sampler)
    return type(scheduler).from_config(scheduler.config, **config) if config else scheduler


@contextmanager
def sampling_with(pipeline: Any, scheduler: Any) -> Iterator[None]:
    """Lends a pipeline a scheduler and silences its progress bar; puts both back."""
    own_scheduler = pipeline.scheduler
    quiet = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    try:
        pipeline.scheduler = scheduler
        yield
    finally:
        pipeline.scheduler = own_scheduler
        pipeline.set_progress_bar_config(**{"disable": False, **quiet})


def generate(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    count: int = 1,
    class_names: Sequence[str | None] | None = None,
    negative_prompts: Sequence[str | None] | None = None,
    images: Sequence[Image.Image] | None = None,
    start: str = "mean",
    sampler: Sampler = Sampler("DDIMScheduler", 20),
    scheduler_config: Mapping[str, Any] = NO_CONFIG,
    guidance_scale: float = 3.0,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    noise: Initializer | None = None,
    batch_size: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
    **call: Any,
) -> list[Image.Image]:
    """A gallery of count pictures for each prompt, next to each other, each with noise from its own seed.

    class_names: one a prompt, None where the prompt's prefix tells; negative_prompts: one a prompt, None for
    none; images: a ControlNet's conditions, one a prompt; start: see the pipeline's call; sampler: the
    scheduler class, steps and spacing, on the checkpoint's own schedule; scheduler_config: config to set on
    top; indices: picture j of prompt i has the seed `seed + indices[i] * count + j`, with i for indices[i]
    if None, so that processes which share out the prompts draw what one would; seeds: the seed of each
    prompt's first picture instead; noise: an initializer, which couples the pictures of a gallery and draws
    all their noise from the seed of the first one; advance(n) is called after every n pictures; call:
    further arguments of the pipeline. The pipeline's own scheduler is put back afterwards.
    Batches are `share_galleries`' parts; a gallery larger than a batch is split, with `noise` never.
    Raises ValueError on a count below 1, and on class_names, negative_prompts, images, indices or seeds that
    are not one a prompt.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    in_step = {
        "class_names": class_names, "negative_prompts": negative_prompts, "images": images,
        "indices": indices, "seeds": seeds,
    }  # fmt: skip
    for name, values in in_step.items():
        if values is not None and len(values) != len(prompts):
            raise ValueError(f"{name} must be one for each of {len(prompts)} prompts, got {len(values)}")
    if seeds is None:
        seeds = [seed + index * count for index in (range(len(prompts)) if indices is None else indices)]
    if batch_size is None:
        batch_size = batch_of(pipeline, height=call.get("height"), width=call.get("width"))
    if pipeline.start_distribution is not None:
        call["start"] = start
    # SDXL takes no negative prompt for something else than an empty one, so they share no batch
    kinds = [negative is None for negative in negative_prompts or [None] * len(prompts)]
    of_each = {"class_name": class_names, "negative_prompt": negative_prompts, "image": images}
    pictures: list[Image.Image] = []
    with sampling_with(pipeline, build_sampler(pipeline.scheduler, sampler, scheduler_config)):
        alone = start == "draw" or adds_noise(pipeline.scheduler, call.get("eta", 0.0))
        for batch in _batches(kinds, count, batch_size, coupled=noise is not None, alone=alone):
            given = {key: [values[i] for i, _ in batch] for key, values in of_each.items() if values}
            if None in given.get("negative_prompt", []):
                del given["negative_prompt"]
            texts = [prompts[i] for i, _ in batch]
            generators: Any = [torch.Generator().manual_seed(seeds[i] + j) for i, j in batch]
            if noise is not None:
                texts = texts[::count]
                given = {key: values[::count] for key, values in given.items()}
                coupled = _OneEach(noise, [seeds[i] for i, j in batch if j == 0])
                call |= {"noise": coupled, "num_images_per_prompt": count}
                generators = coupled.generators[0]
            result = pipeline(
                texts,
                num_inference_steps=sampler.steps,
                guidance_scale=guidance_scale,
                generator=generators,
                **given,
                **call,
            )
            pictures += result.images
            advance(len(batch))
    return pictures


class _OneEach:
    """An initializer's galleries for the prompts of one call, each drawn from its own seed."""

    def __init__(self, inner: Initializer, seeds: Sequence[int]) -> None:
        self.inner, self.generators = inner, [torch.Generator().manual_seed(seed) for seed in seeds]
        self.waiting = iter(self.generators)
        if hasattr(inner, "refine"):
            self.refine = inner.refine

    def draw(self, num_images: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return self.inner.draw(num_images, shape, next(self.waiting))


def _batches(
    kinds: Sequence[Any], count: int, batch_size: int, *, coupled: bool, alone: bool
) -> Iterator[list[tuple[int, int]]]:
    """Which pictures are drawn together: (prompt, picture of its gallery) each.

    coupled: galleries are not split; alone: and each is a batch, for its generator draws more than noise.
    """
    if coupled and alone:
        yield from ([(i, j) for j in range(count)] for i in range(len(kinds)))
        return
    for galleries in share_galleries(kinds, count, batch_size):
        rows = [(i, j) for i in galleries for j in range(count)]
        step = len(rows) if coupled else batch_size
        for first in range(0, len(rows), step):
            yield rows[first : first + step]
