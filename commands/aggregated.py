"""Galleries that several checkpoints draw together in their first steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..inference.aggregation.pipeline import AggregatedPipeline
from ..inference.generate import batch_of, build_sampler, sampling_with
from ..inference.load import load_pipeline, to_draw
from ..train.models import resolve_base
from .checkpoint import Settled
from .coupled import initializer_of
from .recipes import Recipe, start_digest, weights_digest
from .request import Request


@dataclass(frozen=True)
class Together:
    """A request's checkpoints as one; starts: what each draws from, None where it has no start."""

    request: Request
    settled: Settled
    aggregated: AggregatedPipeline
    starts: list[str | None]

    @classmethod
    def of(cls, request: Request, settled: Settled, pipeline: Any, *, device: torch.device) -> Together:
        """Loads the other checkpoints. Raises ValueError, naming the option, on those that do not belong
        together."""
        others = [_other(name, pipeline, request, device=device) for name, _ in request.aggregate]
        weights = [weight for _, weight in request.aggregate]
        own_start = None if pipeline.start_distribution is None else settled.start
        starts = [own_start, *(_start(other, request) for other in others)]
        try:
            aggregated = AggregatedPipeline(
                [pipeline, *others], weights, request.shared_steps, offload=request.offload
            )
        except ValueError as error:
            raise ValueError(f"--aggregate: {error}") from error
        return cls(request, settled, aggregated, starts)

    def recipes(self) -> list[Recipe]:
        """What a recipe says of each other checkpoint."""
        pipelines = self.aggregated.pipelines
        size = self.settled.latent_size(pipelines[0])
        return [
            {
                "weights": weights_digest(other),
                "start_distribution": start_digest(other.start_distribution, size),
                "start": start,
            }
            for other, start in zip(pipelines[1:], self.starts[1:], strict=True)
        ]

    def pictures(self, place: int, *, advance: Callable[[int], None]) -> list[Image.Image]:
        """The gallery at a place; advance(n) is called after every n pictures."""
        gallery, noise, count = (
            self.request.galleries[place],
            initializer_of(self.request),
            self.request.count,
        )
        height, width = self.settled.size
        call: dict[str, Any] = {
            "calls": self._calls(self.settled.classes[place]),
            "num_inference_steps": self.request.steps,
            "guidance_scale": self.request.guidance,
            "height": height,
            "width": width,
            "noise": noise,
        }
        if gallery.negative is not None:
            call["negative_prompt"] = gallery.negative
        generators: Any = [torch.Generator().manual_seed(gallery.seed + j) for j in range(count)]
        pictures: list[Image.Image] = []
        at_a_time = count
        if noise is None:
            at_a_time = batch_of(self.aggregated.pipelines[0], height=height, width=width)
        with self._sampling():
            for first in range(0, count, at_a_time):
                own = generators[first : first + at_a_time]
                generator = own if noise is None else own[0]
                pictures += self._draw(
                    gallery.prompt, num_images_per_prompt=len(own), generator=generator, **call
                )
                advance(len(own))
        return pictures

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """Every pipeline with the request's sampler, on its own schedule."""
        settled = self.settled
        with ExitStack() as stack:
            for each in self.aggregated.pipelines:
                scheduler = build_sampler(each.scheduler, settled.sampler, settled.sampler_config)
                stack.enter_context(sampling_with(each, scheduler))
            yield

    def _draw(self, prompt: str, **call: Any) -> list[Image.Image]:
        try:
            return self.aggregated(prompt, **call).images
        except ValueError as error:
            raise ValueError(f"--aggregate: {error}") from error
        except torch.OutOfMemoryError as error:
            rule = "checkpoints that fit in memory" + ("" if self.request.offload else " without --offload")
            raise ValueError(f"--aggregate must name {rule}, got {str(error).splitlines()[0]}") from error

    def _calls(self, class_name: str | None) -> list[dict[str, Any]]:
        """What is each pipeline's own: start and class, of the first the condition."""
        calls = [
            _start_of(pipeline, start, class_name)
            for pipeline, start in zip(self.aggregated.pipelines, self.starts, strict=True)
        ]
        condition = self.request.condition_for(self.aggregated.pipelines[0], self.settled.size)
        if condition is not None:
            calls[0]["image"] = condition
        return calls


def _other(name: str, pipeline: Any, request: Request, *, device: torch.device) -> Any:
    other = load_pipeline(resolve_base(name), torch_dtype=pipeline.unet.dtype)
    if hasattr(other, "controlnet"):
        raise ValueError(f"--aggregate must name checkpoints without a ControlNet, got {name}")
    return to_draw(other, "cpu" if request.offload else device)


def _start(pipeline: Any, request: Request) -> str | None:
    """What another checkpoint starts from: as asked, else as it was made; None where it has no start."""
    start = pipeline.start_distribution
    return None if start is None else request.start or start.default_start


def _start_of(pipeline: Any, start: str | None, class_name: str | None) -> dict[str, Any]:
    """Class and start for a pipeline that knows them; a class that it does not have is left to the prompt."""
    if start is None:
        return {}
    known = pipeline.start_distribution.class_names
    return {"start": start, "class_name": class_name if class_name in known else None}
