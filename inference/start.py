"""What to hand to a diffusers pipeline as `latents=` so that it starts from x_start."""

import copy
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from torch import Tensor

# 1 / sqrt(d) with d = 4 * 128 * 128, the largest latents in common use: below this share all of x_start's
# pixels together weigh less than one standard deviation of the noise. Stable Diffusion shows .068 of x_start
# at its last timestep; zero terminal SNR 0 or .00024, and flow matching .001 or less.
NO_OP_BELOW = 1 / 256


def start_latents(
    scheduler: Any,
    num_inference_steps: int | None,
    x_start: Tensor | None,
    noise: Tensor,
    *,
    timesteps: list[int] | None = None,
    sigmas: list[float] | None = None,
    begin: int = 0,
) -> Tensor:
    """What to hand to a pipeline so that its network first sees sqrt(a) x_start + sqrt(1-a) noise.

    x_start: (C, H, W) or (B, C, H, W) scaled latents, None for plain noise; noise: (B, C, H, W).
    timesteps, sigmas: custom schedules as diffusers takes them. The scheduler itself is left alone.
    begin: index into the schedule of the first timestep that is sampled; image-to-image and inpainting with
    strength below 1 skip those before it (`t_start * scheduler.order` of them in diffusers).
    At begin = 0 the result is meant for a pipeline that multiplies its `latents` by init_noise_sigma, as
    text-to-image does and inpainting at strength 1; above 0 it is what the scheduler's add_noise gives, for a
    pipeline that does not. One that differs must multiply (image-to-image at strength 1) or divide
    (diffusers' own inpainting with `latents=` and strength below 1) by init_noise_sigma itself.
    With flow matching the start is (1 - sigma) x_start + sigma noise: nearly plain noise, as sigma is near 1;
    `start_share` says how nearly.
    Raises ValueError on shapes that differ, on schedules the scheduler does not accept, on a begin that is no
    step of the schedule, and on schedulers of another kind (EDM).
    Source: METHODS 1, "Inference start".
    """
    if x_start is None:
        return noise
    if x_start.shape[-3:] != noise.shape[-3:]:
        expected, got = tuple(noise.shape), tuple(x_start.shape)
        raise ValueError(f"x_start must be shaped like noise {expected}, got {got}")
    scheduler, t_0 = at_first_step(
        scheduler, num_inference_steps, timesteps=timesteps, sigmas=sigmas, begin=begin
    )
    kept, added = _weights(scheduler, t_0, begin=begin)
    first_seen = kept * x_start + added * noise
    if is_flow(scheduler):
        return first_seen
    scale = float(scheduler.scale_model_input(torch.ones(1), t_0))
    multiplied_by = 1.0 if begin else float(scheduler.init_noise_sigma)
    return first_seen / (scale * multiplied_by)


def start_share(
    scheduler: Any,
    num_inference_steps: int | None,
    *,
    timesteps: list[int] | None = None,
    sigmas: list[float] | None = None,
    begin: int = 0,
) -> float:
    """The weight of x_start in what the network first sees: sqrt(a), or 1 - sigma with flow matching.

    Below NO_OP_BELOW a start distribution changes nothing. Arguments and Raises as for `start_latents`.
    """
    scheduler, t_0 = at_first_step(
        scheduler, num_inference_steps, timesteps=timesteps, sigmas=sigmas, begin=begin
    )
    return _weights(scheduler, t_0, begin=begin)[0]


def at_first_step(
    scheduler: Any,
    num_inference_steps: int | None,
    *,
    timesteps: list[int] | None = None,
    sigmas: list[float] | None = None,
    begin: int = 0,
) -> tuple[Any, Tensor]:
    """A copy of the scheduler with its schedule set, and the timestep of that schedule at index begin.

    Raises ValueError unless begin is a step of the schedule: solvers of order 2 list two timesteps a step.
    """
    scheduler = copy.deepcopy(scheduler)
    schedule, _ = retrieve_timesteps(scheduler, num_inference_steps, timesteps=timesteps, sigmas=sigmas)
    if not 0 <= begin < len(schedule):
        raise ValueError(f"begin must be between 0 and {len(schedule) - 1}, got {begin}")
    order = getattr(scheduler, "order", 1)
    if begin % order:
        raise ValueError(f"begin must be a multiple of the scheduler's order {order}, got {begin}")
    # A timestep that stands twice in the schedule (rounded beta sigmas) is looked up at its second place
    # unless the scheduler is told; pipelines that do not tell it fail at their last step then.
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler, schedule[begin]


def is_flow(scheduler: Any) -> bool:
    """Whether the scheduler mixes (1 - sigma) x_0 + sigma noise, as flow matching does."""
    lacks_scaling = not (hasattr(scheduler, "scale_model_input") and hasattr(scheduler, "init_noise_sigma"))
    return lacks_scaling or bool(scheduler.config.get("use_flow_sigmas"))


def signal_power(scheduler: Any, t_0: Tensor, *, begin: int = 0) -> float:
    """The power a of x_0 in the noisy latents at t_0, of a scheduler made by `at_first_step`."""
    return _weights(scheduler, t_0, begin=begin)[0] ** 2


def _weights(scheduler: Any, t_0: Tensor, *, begin: int) -> tuple[float, float]:
    """The weights of x_0 and of the noise at t_0, by sigma where the scheduler has sigmas.

    The scheduler's step trusts its sigma; the timestep that it tells the network is rounded from it (Karras)
    or cut (exponential and beta sigmas), and SASolver's add_noise goes by the timestep.
    """
    flow = is_flow(scheduler)
    if not hasattr(scheduler, "sigmas" if flow else "alphas_cumprod"):
        kinds = "one that noises as Stable Diffusion or flow matching does"
        raise ValueError(f"scheduler must be {kinds}, got {type(scheduler).__name__}")
    if flow:
        sigma = float(scheduler.sigmas[begin])
        return 1 - sigma, sigma
    if getattr(scheduler, "sigmas", None) is not None:
        a = 1 / (1 + float(scheduler.sigmas[begin]) ** 2)
    else:
        a = float(scheduler.alphas_cumprod[int(t_0)])
    return a**0.5, (1 - a) ** 0.5
