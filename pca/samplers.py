"""Which timesteps a sampler asks for first, and the offset range that follows."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import diffusers

SPACINGS = ("leading", "trailing", "linspace")
LOWEST_SHARE = 0.9  # below this share of T the class mean says nothing that training could use


KEPT = ("timestep_spacing", "steps_offset", "clip_sample", "set_alpha_to_one")
# of a checkpoint whose class has no such setting: latents reach beyond [-1, 1], and no step ends at alpha 1
LATENT_DEFAULTS = {"clip_sample": False, "set_alpha_to_one": False}


class Sampler(NamedTuple):
    """A declared way to sample: diffusers' scheduler class, steps, spacing (None: the checkpoint's own)."""

    scheduler: str
    steps: int
    spacing: str | None = None


DEFAULT_SAMPLERS = (
    Sampler("DDIMScheduler", 20),
    Sampler("DPMSolverMultistepScheduler", 20),
    Sampler("DPMSolverMultistepScheduler", 25),
    Sampler("EulerDiscreteScheduler", 30),
)


def build_scheduler(noise_scheduler: Any, sampler: Sampler) -> Any:
    """The scheduler that a declared sampler means, with the betas and spacing of a checkpoint's scheduler.

    Latents are clipped by none, unless the checkpoint's own scheduler says so.

    noise_scheduler: a diffusers scheduler or its config.
    Raises ValueError on an unknown scheduler class or spacing, or a spacing where the class has none.
    """
    valid = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    if sampler.scheduler not in valid:
        nearest = get_close_matches(sampler.scheduler, valid, n=1, cutoff=0.4)
        hint = f" (nearest: {nearest[0]})" if nearest else ""
        raise ValueError(f"sampler must be a scheduler class of diffusers{hint}, got {sampler.scheduler!r}")
    if sampler.spacing is not None and sampler.spacing not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {sampler.spacing!r}")
    scheduler_class = getattr(diffusers, sampler.scheduler)
    config = _config(noise_scheduler)
    takes = inspect.signature(scheduler_class).parameters
    if sampler.spacing is not None and "timestep_spacing" not in takes:
        raise ValueError(f"spacing must be None for {sampler.scheduler}, got {sampler.spacing!r}")
    # from_config drops a value that is merely the default of the checkpoint's class, so each is named here
    own = LATENT_DEFAULTS | {name: config[name] for name in KEPT if config.get(name) is not None}
    if sampler.spacing is not None:
        own["timestep_spacing"] = sampler.spacing
    return scheduler_class.from_config(
        config, **{name: value for name, value in own.items() if name in takes}
    )


def first_timestep(scheduler: Any, steps: int) -> int:
    """The timestep, rounded down, at which the scheduler first calls the network when it takes `steps` steps.

    Works on a copy: the scheduler's own state is left alone. Raises ValueError unless steps is positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps}")
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    return int(scheduler.timesteps[0])


def offset_from(
    noise_scheduler: Any,
    samplers: Sequence[Sampler] = DEFAULT_SAMPLERS,
    *,
    skip_interval: int = 50,
) -> int:
    """The first timestep t_min of the offset range: min(T - S, first timestep of every declared sampler).

    noise_scheduler: a diffusers scheduler or its config; samplers: Sampler or (scheduler, steps, spacing).
    A skip_interval of 0 disables the offset: the range is empty and t_min = T.
    Raises ValueError when skip_interval is outside [0, T], and when t_min < 0.9 T.
    Source: METHODS 1, "Offset range".
    """
    total = int(_config(noise_scheduler)["num_train_timesteps"])
    if not 0 <= skip_interval <= total:
        raise ValueError(f"skip_interval must be in [0, {total}], got {skip_interval}")
    if skip_interval == 0:
        return total
    starts = {f"skip_interval = {skip_interval}": total - skip_interval}
    for sampler in (Sampler(*s) for s in samplers):
        scheduler = build_scheduler(noise_scheduler, sampler)
        spacing = scheduler.config.get("timestep_spacing") or "its own"
        label = f"{sampler.scheduler} at {sampler.steps} steps, {spacing} spacing"
        starts[label] = first_timestep(scheduler, sampler.steps)
    cause, t_min = min(starts.items(), key=lambda item: item[1])
    if t_min < LOWEST_SHARE * total:
        raise ValueError(
            f"offset range must start at 0.9 T = {LOWEST_SHARE * total:.0f} or later, got {t_min} ({cause}): "
            "use trailing spacing or more steps, or set start.offset_from"
        )
    return t_min


def _config(noise_scheduler: Any) -> Mapping[str, Any]:
    return noise_scheduler if isinstance(noise_scheduler, Mapping) else noise_scheduler.config
