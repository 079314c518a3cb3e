"""Galleries that several checkpoints draw together in their first steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from ..inference.aggregation.pipeline import AggregatedPipeline
from ..inference.generate import batch_of, build_sampler
from ..inference.load import load_pipeline, to_draw
from ..train.models import resolve_base
from .coupled import initializer_of
from .recipes import start_digest, weights_digest
from .request import Request

Draw = Callable[[int], list[Image.Image]]


def aggregate_of(
    request: Request, settled: Any, pipeline: Any, *, device: Any, condition: Any
) -> tuple[Draw, list[dict[str, Any]]]:
    """What draws the gallery at a place, and what a recipe says of each other checkpoint.

    Raises ValueError, naming the option, on checkpoints that do not belong together.
    """
    import torch

    others = []
    for name, _ in request.aggregate:
        other = load_pipeline(resolve_base(name), torch_dtype=pipeline.unet.dtype)
        if hasattr(other, "controlnet"):
            raise ValueError(f"--aggregate must name checkpoints without a ControlNet, got {name}")
        others.append(other)
        if request.offload:
            other.enable_model_cpu_offload(device=device)
        else:
            to_draw(other, device)
    size = settled.latent_size(pipeline)
    starts = [_start(other, request) for other in others]
    told = [
        {
            "weights": weights_digest(other),
            "start_distribution": start_digest(other.start_distribution, size),
            "start": start,
        }
        for other, start in zip(others, starts, strict=True)
    ]
    starts = [None if pipeline.start_distribution is None else settled.start, *starts]
    pipelines = [pipeline, *others]
    try:
        aggregated = AggregatedPipeline(
            pipelines, [weight for _, weight in request.aggregate], request.shared_steps
        )
    except ValueError as error:
        raise ValueError(f"--aggregate: {error}") from error
    own_scheduler = build_sampler(pipeline.scheduler, settled.sampler, settled.sampler_config)
    schedulers = [
        own_scheduler,
        *(build_sampler(other.scheduler, settled.sampler, settled.sampler_config) for other in others),
    ]

    def draw(place: int) -> list[Image.Image]:
        height, width = settled.size
        gallery, noise, count = request.galleries[place], initializer_of(request), request.count
        for each, scheduler in zip(pipelines, schedulers, strict=True):
            each.scheduler = scheduler
            each.set_progress_bar_config(disable=True)
        generators: Any = [torch.Generator().manual_seed(gallery.seed + j) for j in range(count)]
        shared = {} if gallery.negative is None else {"negative_prompt": gallery.negative}
        calls = [
            _own(each, start, settled.classes[place]) for each, start in zip(pipelines, starts, strict=True)
        ]
        if condition is not None:
            calls[0]["image"] = condition
        pictures: list[Image.Image] = []
        at_a_time = count if noise is not None else batch_of(pipeline, height=height, width=width)
        for first in range(0, count, at_a_time):
            own = generators[first : first + at_a_time]
            try:
                pictures += aggregated(
                    gallery.prompt, calls=calls, num_inference_steps=request.steps,
                    num_images_per_prompt=len(own), guidance_scale=request.guidance, height=height,
                    width=width, generator=own if noise is None else own[0], noise=noise, **shared,
                ).images  # fmt: skip
            except ValueError as error:
                raise ValueError(f"--aggregate: {error}") from error
            except torch.OutOfMemoryError as error:
                remedy = "" if request.offload else " without --offload"
                rule = f"checkpoints that fit in memory{remedy}"
                raise ValueError(f"--aggregate must name {rule}, got {str(error).splitlines()[0]}") from error
        return pictures

    return draw, told


def _start(pipeline: Any, request: Request) -> str | None:
    """What another checkpoint starts from: as asked, else as it was made; None where it has no start."""
    start = pipeline.start_distribution
    return None if start is None else request.start or start.default_start


def _own(pipeline: Any, start: str | None, class_name: str | None) -> dict[str, Any]:
    """Class and start for a pipeline that knows them; a class that it does not have is left to the prompt."""
    if start is None:
        return {}
    known = pipeline.start_distribution.class_names
    return {"start": start, "class_name": class_name if class_name in known else None}
