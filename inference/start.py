"""What to hand to a diffusers pipeline as `latents=` so that it starts from x_start."""

import copy
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from torch import Tensor


def start_latents(
    scheduler: Any,
    num_inference_steps: int | None,
    x_start: Tensor | None,
    noise: Tensor,
    *,
    timesteps: list[int] | None = None,
    sigmas: list[float] | None = None,
) -> Tensor:
    """What to hand to a pipeline so that its network first sees sqrt(a) x_start + sqrt(1-a) noise.

    x_start: (C, H, W) or (B, C, H, W) scaled latents, None for plain noise; noise: (B, C, H, W).
    timesteps, sigmas: custom schedules as diffusers takes them. The scheduler itself is left alone.
    With flow matching the start is (1 - sigma) x_start + sigma noise: nearly plain noise, as sigma is near 1.
    Raises ValueError on shapes that differ and on schedules the scheduler does not accept.
    Source: METHODS 1, "Inference start, right for every scheduler".
    """
    if x_start is None:
        return noise
    if x_start.shape[-3:] != noise.shape[-3:]:
        expected, got = tuple(noise.shape), tuple(x_start.shape)
        raise ValueError(f"x_start must be shaped like noise {expected}, got {got}")
    scheduler, t_0 = at_first_step(scheduler, num_inference_steps, timesteps=timesteps, sigmas=sigmas)
    if is_flow(scheduler):
        sigma = float(scheduler.sigmas[0])
        return (1 - sigma) * x_start + sigma * noise
    a = signal_power(scheduler, t_0)
    x_vp = a**0.5 * x_start + (1 - a) ** 0.5 * noise
    scale = float(scheduler.scale_model_input(torch.ones(1), t_0))
    return x_vp / (scale * float(scheduler.init_noise_sigma))


def at_first_step(
    scheduler: Any,
    num_inference_steps: int | None,
    *,
    timesteps: list[int] | None = None,
    sigmas: list[float] | None = None,
) -> tuple[Any, Tensor]:
    """A copy of the scheduler with its schedule set, and the first timestep of that schedule."""
    scheduler = copy.deepcopy(scheduler)
    schedule, _ = retrieve_timesteps(scheduler, num_inference_steps, timesteps=timesteps, sigmas=sigmas)
    return scheduler, schedule[0]


def is_flow(scheduler: Any) -> bool:
    """Whether the scheduler mixes (1 - sigma) x_0 + sigma noise, as flow matching does."""
    lacks_scaling = not (hasattr(scheduler, "scale_model_input") and hasattr(scheduler, "init_noise_sigma"))
    return lacks_scaling or bool(scheduler.config.get("use_flow_sigmas"))


def signal_power(scheduler: Any, t_0: Tensor) -> float:
    """The share a of x_0's power in the first noisy latents, by sigma where the scheduler has sigmas."""
    if getattr(scheduler, "sigmas", None) is not None:
        return 1 / (1 + float(scheduler.sigmas[0]) ** 2)
    return float(scheduler.alphas_cumprod[int(t_0)])
