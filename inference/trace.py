"""What a picture looks like on its way: the noisy latents and the predicted picture at every step."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..pca import Sampler
from .generate import NO_CONFIG, build_sampler, sampling_with
from .prediction import predicted_x_0


class TraceStep(NamedTuple):
    """One call of the network: the timestep it was told, x_t as it saw it, and the x_0 it predicts there.

    x_t, x_0: (C, H, W) scaled latents, float32 on the CPU; guidance is included in x_0.
    """

    timestep: float
    x_t: Tensor
    x_0: Tensor


def trace(
    pipeline: Any,
    prompt: str,
    *,
    sampler: Sampler = Sampler("DDIMScheduler", 20),
    scheduler_config: Mapping[str, Any] = NO_CONFIG,
    guidance_scale: float = 3.0,
    seed: int = 0,
    **call: Any,
) -> list[TraceStep]:
    """Every step of one picture, the one that `generate` draws with these arguments and this seed.

    call: further arguments of the pipeline, `start` and `class_name` among them.
    Raises ValueError on a scheduler that noises neither as Stable Diffusion nor as flow matching does.
    """
    scheduler = build_sampler(pipeline.scheduler, sampler, scheduler_config)
    steps = record_steps(scheduler)
    with sampling_with(pipeline, scheduler):
        pipeline(
            prompt,
            num_inference_steps=sampler.steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            **call | {"output_type": "latent"},
        )
    return steps


def record_steps(scheduler: Any) -> list[TraceStep]:
    """A list that grows by an entry, of the batch's first picture, whenever this scheduler steps."""
    steps: list[TraceStep] = []
    plain_step = scheduler.step

    # pipelines read the names of its arguments off the function they call
    @functools.wraps(plain_step)
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *others: Any, **named: Any) -> Any:
        output, noisy = model_output[0].float().cpu(), sample[0].float().cpu()
        x_t, x_0 = predicted_x_0(scheduler, output, timestep, noisy, index=len(steps))
        steps.append(TraceStep(float(timestep), x_t, x_0))
        return plain_step(model_output, timestep, sample, *others, **named)

    scheduler.step = step
    return steps
