"""One of several pipelines that draw a picture together: its call, its scheduler, its noise."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..noise import Generators, Initializer, draw_noise
from .step import mean_of_step

HandOver = Callable[[tuple[Tensor, Tensor]], Tensor]


class Member:
    """A pipeline in one call: a copy of it that shares its modules, with a scheduler that hands over.

    call: the arguments but the noise and what it is drawn from; scheduler: a plain copy of the pipeline's
    with its timesteps set; place: 0 for the first model, which uses the generator itself.
    """

    def __init__(
        self,
        pipeline: Any,
        call: dict[str, Any],
        scheduler: Any,
        generator: Generators,
        drawn: "DrawnOnce | None",
        place: int,
    ) -> None:
        self.owner, self.pipeline, self.scheduler = pipeline, copy.copy(pipeline), scheduler
        self.call, self.drawn, self.place = call, drawn, place
        self.generator = _copies(generator) if place else generator
        self.step_generator = _branches(generator, place) if place else generator
        self.hand_over: HandOver = _unchanged

    def run(self, hand_over: HandOver) -> Any:
        """The pipeline's call; hand_over gets each step's output and mean, and returns where to go on.

        Raises ValueError if a model other than the first comes to its end: it is stopped before.
        """
        self.hand_over = hand_over
        self.pipeline.scheduler = self._handing()
        call = {**self.call, "generator": self.generator}
        if self.place == 0:
            return self.pipeline(**call | ({} if self.drawn is None else {"noise": self.drawn}))
        if self.drawn is not None and hasattr(self.pipeline, "start_distribution"):
            call["noise"] = DrawnAgain(self.drawn)
        elif self.drawn is not None:
            call["latents"] = torch.cat(self.drawn.galleries).to(self.pipeline.unet.dtype)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline(**call | {"output_type": "latent"})
        raise ValueError(f"call of model {self.place + 1} must last for all aggregated steps, got its end")

    def close(self) -> None:
        """Lets go of everything; the pipeline has the hooks that its modules have now."""
        if "_all_hooks" in vars(self.pipeline):
            self.owner._all_hooks = self.pipeline._all_hooks
        # a class made in a call lives until the next collection: models must not be kept as long
        vars(self.pipeline).clear()
        vars(self).clear()

    def _handing(self) -> Any:
        """A copy of the pipeline's scheduler whose steps go through hand_over.

        A copy of this copy, with which initializers look at what the network makes of noise, steps as ever.
        """
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        vars(scheduler).pop("step", None)  # one put there by hand would stand before the class's
        plain_class = type(scheduler)

        # pipelines read the names of its arguments off the function they call
        @functools.wraps(plain_class.step)
        def step(own: Any, model_output: Tensor, timestep: Any, sample: Tensor, **named: Any) -> Any:
            if own is not scheduler:
                return plain_class.step(own, model_output, timestep, sample, **named)
            if "generator" in named:
                named["generator"] = self.step_generator
            output = plain_class.step(own, model_output, timestep, sample, **named)
            pair = output[:2] if isinstance(output, tuple) else output.to_tuple()[:2]
            how = {name: named[name] for name in ("eta", "use_clipped_model_output") if name in named}
            mean = mean_of_step(self.scheduler, pair, model_output, timestep, sample, **how)
            corrected = self.hand_over((pair[0], mean))
            if isinstance(output, tuple):
                return (corrected, *output[1:])
            output.prev_sample = corrected
            return output

        scheduler.__class__ = type(plain_class.__name__, (plain_class,), {"step": step})
        return scheduler


class DrawnOnce:
    """An initializer that keeps the noise of each gallery, as it is after refining."""

    def __init__(self, inner: Initializer) -> None:
        self.inner, self.galleries = inner, list[Tensor]()
        if hasattr(inner, "refine"):
            self.waiting = 0
            self.refine = self._refine

    def draw(self, num_images: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        self.galleries.append(draw_noise(1, num_images, shape, generator, initializer=self.inner))
        return self.galleries[-1]

    def _refine(self, eps: Tensor, predict: Any) -> Tensor:
        inner: Any = self.inner
        self.galleries[self.waiting] = inner.refine(eps, predict)
        self.waiting += 1
        return self.galleries[self.waiting - 1]


class DrawnAgain:
    """An initializer that gives the galleries of another, one after the other."""

    def __init__(self, drawn: DrawnOnce) -> None:
        self.galleries = iter(drawn.galleries)

    def draw(self, num_images: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return next(self.galleries)


def _unchanged(stepped: tuple[Tensor, Tensor]) -> Tensor:
    return stepped[0]


def _copies(generators: Any) -> Any:
    """Generators that draw what these would."""
    if isinstance(generators, Sequence):
        return [_copies(generator) for generator in generators]
    twin = torch.Generator(generators.device)
    twin.set_state(generators.get_state())
    return twin


def _branches(generators: Any, place: int) -> Any:
    """Generators with seeds of their own, which follow from the state of these."""
    if isinstance(generators, Sequence):
        return [_branches(generator, place) for generator in generators]
    twin = _copies(generators)
    seeds = torch.randint(2**62, (place,), generator=twin, device=twin.device)
    return twin.manual_seed(int(seeds[-1]))
