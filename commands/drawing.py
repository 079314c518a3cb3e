"""A request on an open checkpoint: how each of its galleries is drawn."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..inference.backgrounds import scenes
from ..inference.generate import batch_of, generate, share_galleries
from ..inference.noise import Initializer
from ..inference.trace import trace
from ..inference.trace_sheet import trace_sheet
from .checkpoint import Settled
from .coupled import initializer_of
from .pictures import TRACE
from .placed import draw_laid_out
from .request import Request, open_picture

if TYPE_CHECKING:
    from .aggregated import Together

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Drawing:
    """What is asked for, what it comes to, and the pipeline that draws it; together: with other checkpoints.

    A place is that of a gallery among the request's.
    """

    request: Request
    settled: Settled
    pipeline: Any
    together: Together | None = None

    @property
    def parts(self) -> list[range]:
        """The galleries that are drawn at a time, by their places."""
        alike = [gallery.negative is None for gallery in self.request.galleries]
        return share_galleries(alike, self.request.count, self._batch_size)

    @property
    def passes(self) -> int:
        """How often `advance` is told of a picture before it is done."""
        return 1 if self.request.background_of is None else self.request.refining_steps + 1

    def pictures(self, part: Sequence[int], *, folder: Path, advance: Advance) -> Iterable[Image.Image]:
        """The pictures of galleries, one after the other; of a layout what was looked at goes to `folder`."""
        if self.request.background_of is not None:
            own = functools.partial(self._scenes, file=self.request.background_of, advance=advance)
        elif self.together is not None:
            own = functools.partial(self.together.pictures, advance=advance)
        elif self.request.layout is not None:
            own = functools.partial(self._laid_out, folder=folder, advance=advance)
        else:
            return self._plain(part, advance=advance)
        return itertools.chain.from_iterable(own(place) for place in part)

    def trace(self, folder: Path) -> None:
        """Writes the first picture's way from pure noise and, where it has a start, from that."""
        first, start = self.request.galleries[0], self.pipeline.start_distribution
        call = self._call
        if first.negative is not None:
            call = call | {"negative_prompt": first.negative}
        if self._condition is not None:
            call = call | {"image": self._condition}
        follow = functools.partial(trace, self.pipeline, first.prompt, seed=first.seed)
        from_noise = {key: value for key, value in call.items() if key not in ("x_start", "project_start")}
        traces = {"from pure noise": follow(**from_noise, start="none")}
        if "x_start" in call:
            traces["from its start"] = follow(**call, class_name=self.settled.classes[0])
        elif start is not None:
            own = self.settled.start if self.settled.start != "none" else start.default_start
            traces["from its start"] = follow(**call, start=own, class_name=self.settled.classes[0])
        told = f"seed {first.seed}, {self.settled.sampler.scheduler}, guidance {self.request.guidance:g}"
        trace_sheet(self.pipeline, traces, title=f"{first.prompt} ({told})").save(folder / TRACE)

    def _plain(self, part: Sequence[int], *, advance: Advance, **more: Any) -> list[Image.Image]:
        galleries = [self.request.galleries[place] for place in part]
        classes = [self.settled.classes[place] for place in part]
        condition = self._condition
        return generate(
            self.pipeline,
            [gallery.prompt for gallery in galleries],
            count=self.request.count,
            class_names=classes if self.pipeline.start_distribution else None,
            negative_prompts=[gallery.negative for gallery in galleries],
            images=None if condition is None else [condition] * len(part),
            start=self.settled.start or "mean",
            seeds=[gallery.seed for gallery in galleries],
            noise=self._noise,
            batch_size=self._batch_size,
            advance=advance,
            **self._call,
            **more,
        )

    def _laid_out(self, place: int, *, folder: Path, advance: Advance) -> list[Image.Image]:
        """A gallery whose layout is followed; of the first it is drawn what was looked at."""
        return draw_laid_out(
            self.request,
            self.pipeline,
            functools.partial(self._plain, [place], advance=advance),
            prompt=self.request.galleries[place].prompt,
            folder=folder if place == 0 else None,
        )

    def _scenes(self, place: int, *, file: Path, advance: Advance) -> list[Image.Image]:
        """The object of a picture before new backgrounds, as a gallery asks for."""
        gallery, (height, width) = self.request.galleries[place], self.settled.size
        how: dict[str, Any] = {}
        if self.pipeline.start_distribution is not None:
            how = {"class_name": self.settled.classes[place], "start": self.settled.start}
        return scenes(
            self.pipeline,
            open_picture("--background-of", file),
            self.request.mask,
            prompt=gallery.prompt,
            images=self.request.count,
            optimisation_steps=self.request.refining_steps,
            coupling=self._noise,
            sampler=self.settled.sampler,
            seed=gallery.seed,
            height=height,
            width=width,
            advance=advance,
            **how,
        ).pictures

    @functools.cached_property
    def _call(self) -> dict[str, Any]:
        """What `generate` and `trace` are both told."""
        height, width = self.settled.size
        call: dict[str, Any] = {
            "sampler": self.settled.sampler,
            "scheduler_config": self.settled.sampler_config,
            "guidance_scale": self.request.guidance,
            "height": height,
            "width": width,
        }
        if self.request.start_image is not None:
            # encoded here, once: an offloaded VAE moves to the accelerator only while it is called whole
            self.pipeline.vae.to(self.pipeline._execution_device)
            picture = open_picture("--start-image", self.request.start_image)
            call["x_start"] = self.pipeline._encode(picture, height=height, width=width)
            call["project_start"] = self.request.project
        return call

    @functools.cached_property
    def _condition(self) -> Image.Image | None:
        return self.request.condition_for(self.pipeline, self.settled.size)

    @functools.cached_property
    def _noise(self) -> Initializer | None:
        return initializer_of(self.request, size=self.settled.latent_size(self.pipeline))

    @functools.cached_property
    def _batch_size(self) -> int:
        return batch_of(self.pipeline, height=self.settled.size[0], width=self.settled.size[1])
