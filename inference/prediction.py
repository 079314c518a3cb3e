"""What the network makes of the first noisy latents, for initial noise that is chosen by looking at it."""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .start import at_first_step, is_flow, signal_power, start_latents


class FirstPrediction:
    """eps (N, C, H, W) -> (x_0, None): one forward pass at the first step, guidance and x_start included.

    Float32 on the CPU, without gradients. gain: how x_0 changes with eps while the network's output stands
    still, d x_0 / d eps; with it `x_0 + gain * (eps - eps.detach())` has the gradient of the formula alone.
    """

    def __init__(
        self,
        pipeline: Any,
        plain_call: Callable[..., Any],
        x_start: Tensor | None,
        *,
        steps: int,
        schedule: dict[str, Any],
    ) -> None:
        self.pipeline, self.plain_call, self.x_start = pipeline, plain_call, x_start
        self.steps, self.schedule = steps, schedule
        scheduler, t_0 = at_first_step(pipeline.scheduler, steps, **schedule)
        self.gain = gain_at(scheduler, t_0)

    @torch.no_grad()
    def __call__(self, eps: Tensor) -> tuple[Tensor, None]:
        """See the class."""
        pipeline, own = self.pipeline, self.pipeline.scheduler
        latents = start_latents(own, self.steps, self.x_start, eps.detach(), **self.schedule)
        seen: list[Tensor] = []
        scheduler = copy.deepcopy(own)
        vars(scheduler).pop("step", None)  # one put there to look on would step, and look on, elsewhere
        plain_step = scheduler.step

        # pipelines read the names of its arguments off the function they call
        @functools.wraps(plain_step)
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *others: Any, **named: Any) -> Any:
            output, noisy = model_output.float().cpu(), sample.float().cpu()
            seen.append(predicted_x_0(scheduler, output, timestep, noisy, index=0)[1])
            pipeline._interrupt = True
            return plain_step(model_output, timestep, sample, *others, **named)

        scheduler.step = step
        bar = dict(getattr(pipeline, "_progress_bar_config", {}))
        try:
            pipeline.scheduler = scheduler
            pipeline.set_progress_bar_config(disable=True)
            self.plain_call(latents.to(pipeline._execution_device, pipeline.unet.dtype))
        finally:
            pipeline.scheduler = own
            pipeline.set_progress_bar_config(**{"disable": False, **bar})
        return seen[0], None


def predicted_x_0(
    scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor, *, index: int
) -> tuple[Tensor, Tensor]:
    """x_t as the network saw it, and the x_0 that its output stands for, by the closed form.

    sample: the scheduler's own latents, which sigma-based ones scale down for the network; index: of the
    call, from 0. Raises ValueError on an unknown prediction_type or kind of scheduler.
    """
    if is_flow(scheduler):
        return sample, sample - float(scheduler.sigmas[index]) * model_output
    scale = float(scheduler.scale_model_input(torch.ones(1), timestep))
    if scale < 1:  # solvers of order 2 keep the sigmas of their half steps elsewhere
        a = scale**2
    elif getattr(scheduler, "sigmas", None) is not None:
        a = 1 / (1 + float(scheduler.sigmas[index]) ** 2)
    elif hasattr(scheduler, "alphas_cumprod"):
        a = float(scheduler.alphas_cumprod[int(timestep)])
    else:
        kinds = "one that noises as Stable Diffusion or flow matching does"
        raise ValueError(f"scheduler must be {kinds}, got {type(scheduler).__name__}")
    x_t, kind = scale * sample, scheduler.config.prediction_type
    if kind == "epsilon":
        return x_t, (x_t - math.sqrt(1 - a) * model_output) / math.sqrt(a)
    if kind == "v_prediction":
        return x_t, math.sqrt(a) * x_t - math.sqrt(1 - a) * model_output
    if kind == "sample":
        return x_t, model_output
    raise ValueError(f"prediction_type must be epsilon, v_prediction or sample, got {kind!r}")


def gain_at(scheduler: Any, t_0: Tensor) -> float:
    """d x_0 / d eps at the first step of a scheduler made by `at_first_step`, its output held fixed."""
    if is_flow(scheduler):
        return float(scheduler.sigmas[0])
    a, kind = signal_power(scheduler, t_0), scheduler.config.prediction_type
    if kind == "epsilon":
        return math.sqrt((1 - a) / a)
    if kind == "v_prediction":  # also where the schedule ends at pure noise: 0
        return math.sqrt(a * (1 - a))
    if kind == "sample":
        return 0.0
    raise ValueError(f"prediction_type must be epsilon, v_prediction or sample, got {kind!r}")
