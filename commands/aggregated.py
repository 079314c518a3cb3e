"""Galleries that several checkpoints draw together in their first steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from ..inference.aggregation.pipeline import AggregatedPipeline
from ..inference.generate import build_sampler
from ..inference.load import load_pipeline
from ..train.models import resolve_base
from .recipes import weights_digest
from .request import Request

Draw = Callable[[int], list[Image.Image]]


def aggregate_of(
    request: Request, settled: Any, pipeline: Any, *, device: Any, condition: Any
) -> tuple[Draw, list[str]]:
    """What draws the gallery at a place, and the digests of the other checkpoints' weights.

    Raises ValueError, naming the option, on checkpoints that do not belong together.
    """
    import torch

    others = []
    for name, _ in request.aggregate:
        other = load_pipeline(resolve_base(name), torch_dtype=pipeline.unet.dtype)
        others.append(other.to(device))
    digests = [weights_digest(other) for other in others]
    pipelines = [pipeline, *others]
    try:
        aggregated = AggregatedPipeline(
            pipelines, [weight for _, weight in request.aggregate], request.aggregate_steps
        )
    except ValueError as error:
        raise ValueError(f"--aggregate: {error}") from error
    own_scheduler = build_sampler(pipeline.scheduler, settled.sampler, settled.sampler_config)
    schedulers = [
        own_scheduler,
        *(build_sampler(other.scheduler, settled.sampler, settled.sampler_config) for other in others),
    ]

    def draw(place: int) -> list[Image.Image]:
        gallery, noise, count = request.galleries[place], request.noise(), request.count
        for each, scheduler in zip(pipelines, schedulers, strict=True):
            each.scheduler = scheduler
            each.set_progress_bar_config(disable=True)
        generators: Any = [torch.Generator().manual_seed(gallery.seed + j) for j in range(count)]
        shared = {} if gallery.negative is None else {"negative_prompt": gallery.negative}
        calls = [_own(each, settled, place) for each in pipelines]
        if condition is not None:
            calls[0]["image"] = condition
        try:
            return aggregated(
                gallery.prompt,
                calls=calls,
                num_inference_steps=request.steps,
                num_images_per_prompt=count,
                guidance_scale=request.guidance,
                height=settled.size[0],
                width=settled.size[1],
                generator=generators if noise is None else generators[0],
                noise=noise,
                **shared,
            ).images
        except ValueError as error:
            raise ValueError(f"--aggregate: {error}") from error

    return draw, digests


def _own(pipeline: Any, settled: Any, place: int) -> dict[str, Any]:
    """Class and start for a pipeline that knows them; a class that it does not have is left to the prompt."""
    start = pipeline.start_distribution
    if start is None:
        return {}
    name = settled.classes[place]
    how = settled.start if settled.start in ("mean", "draw", "none") else start.default_start
    return {"start": how, "class_name": name if name in start.class_names else None}
