"""Which pipelines may be aggregated: those whose noisy latents at any timestep mean the same."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from ...pca.fingerprint import COMPARED, TOLERANCE, vae_fingerprint
from ..size import picture_size
from ..start import at_first_step
from ..tickets.guidance import is_guided
from .step import check_scheduler

PARTS = ("vae", "unet", "scheduler")


def check_pipelines(pipelines: Sequence[Any]) -> None:
    """Refuses pipelines of another kind than text-to-image, and those whose latents differ from the first's.

    Raises ValueError, with both values, on the first difference.
    """
    if len(pipelines) < 2:
        raise ValueError(f"pipelines must be two or more, got {len(pipelines)}")
    for i, pipeline in enumerate(pipelines, 1):
        lacking = [part for part in PARTS if getattr(pipeline, part, None) is None]
        if lacking:
            raise ValueError(f"pipeline of model {i} must have {', '.join(PARTS)}, got none for {lacking[0]}")
        if "strength" in _arguments(pipeline):
            kind = type(pipeline).__name__
            raise ValueError(f"pipeline of model {i} must begin at noise, not at a picture, got {kind}")
    first = pipelines[0]
    for i, other in enumerate(pipelines[1:], 2):
        ours, theirs = (one.unet.config.in_channels for one in (first, other))
        if ours != theirs:
            raise ValueError(f"UNet in_channels of model {i} must be {ours} as of model 1, got {theirs}")
    _check_vaes([pipeline.vae for pipeline in pipelines])


def check_unguided(pipelines: Sequence[Any]) -> None:
    """Raises ValueError on a pipeline that a layout guides: it reads its step off that one's own calls."""
    for i, pipeline in enumerate(pipelines, 1):
        if is_guided(pipeline):
            raise ValueError(f"pipeline of model {i} must be without Soft or Paint while it is aggregated")


def check_schedules(pipelines: Sequence[Any], calls: Sequence[Mapping[str, Any]], steps: int) -> list[Any]:
    """A copy of each pipeline's scheduler with the schedule of its call set.

    calls: the arguments of each. Raises ValueError, with both values, unless all of them noise alike and step
    through the same timesteps; and if `steps` is more than there are.
    """
    schedulers = []
    for i, (pipeline, call) in enumerate(zip(pipelines, calls, strict=True), 1):
        check_scheduler(pipeline.scheduler, f" of model {i}")
        custom: dict[str, Any] = {key: call.get(key) for key in ("timesteps", "sigmas")}
        schedulers.append(at_first_step(pipeline.scheduler, call["num_inference_steps"], **custom)[0])
    first, visited = schedulers[0], _visited(schedulers[0])
    for i, other in enumerate(schedulers[1:], 2):
        _check_noise(first.alphas_cumprod, other.alphas_cumprod, model=i)
        theirs = _visited(other)
        if len(visited) != len(theirs):
            raise ValueError(
                f"number of steps of model {i} must be {len(visited)} as of model 1, got {len(theirs)}"
            )
        for place, (expected, got) in enumerate(zip(visited, theirs, strict=True)):
            if expected != got:
                raise ValueError(
                    f"step {place} of model {i} must be from timestep {expected[0]} to {expected[1]} "
                    f"as of model 1, got {got[0]} to {got[1]}"
                )
    if steps > len(visited):
        raise ValueError(f"steps must be at most num_inference_steps {len(visited)}, got {steps}")
    return schedulers


def check_arguments(pipeline: Any, call: Mapping[str, Any], model: int) -> None:
    """Refuses arguments that the pipeline's call does not name; diffusers would leave them unread.

    Raises ValueError.
    """
    unknown = sorted(set(call) - _arguments(pipeline))
    if unknown:
        raise ValueError(
            f"arguments of model {model} must be those of {type(pipeline).__name__}, got {unknown[0]}: "
            "what some models alone take belongs in calls"
        )


def size_of(pipeline: Any, call: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in pixels of the pictures that this call would give."""
    factor, picture = pipeline.vae_scale_factor, call.get("image")
    while isinstance(picture, list) and picture:
        picture = picture[0]
    if getattr(pipeline, "start_distribution", None) is None and isinstance(picture, Image.Image | Tensor):
        # a ControlNet's condition gives its own size
        sides = picture.shape[-2:] if isinstance(picture, Tensor) else (picture.height, picture.width)
        height, width = (side // factor * factor for side in sides)
    else:
        height, width = picture_size(pipeline)
    return call.get("height") or height, call.get("width") or width


def _arguments(pipeline: Any) -> set[str]:
    """What a pipeline's call and those behind it name; ours hand what they do not name to diffusers'."""
    own = [vars(kind)["__call__"] for kind in type(pipeline).__mro__ if "__call__" in vars(kind)]
    return {name for call in own for name in inspect.signature(call).parameters}


def _check_vaes(vaes: Sequence[Any]) -> None:
    if all(vae is vaes[0] for vae in vaes):
        return
    first = vae_fingerprint(vaes[0])
    for i, vae in enumerate(vaes[1:], 2):
        if vae is vaes[0]:
            continue
        found = vae_fingerprint(vae)
        for key in COMPARED:
            ours, theirs = first["config"][key], found["config"][key]
            if ours != theirs:
                raise ValueError(f"VAE {key} of model {i} must be {ours} as of model 1, got {theirs}")
        expected, actual = _values(first), _values(found)
        rms, difference = (float(x.square().mean().sqrt()) for x in (expected, actual - expected))
        if not difference <= TOLERANCE * rms:
            raise ValueError(
                f"VAE of model {i} must be that of model 1: its latents of a test picture must agree within "
                f"{TOLERANCE:.0%} of their RMS {rms:.4f}, got an RMS difference of {difference:.4f}"
            )


def _check_noise(ours: Tensor, theirs: Tensor, *, model: int) -> None:
    if len(ours) != len(theirs):
        raise ValueError(
            f"noise schedule of model {model} must have {len(ours)} timesteps as of model 1, "
            f"got {len(theirs)}"
        )
    apart = (ours.cpu() - theirs.cpu()).abs()
    if not apart.max() <= 1e-6:
        t = int(apart.argmax())
        raise ValueError(
            f"noise schedule of model {model} must have alphas_cumprod {float(ours[t]):.6g} at timestep {t} "
            f"as of model 1, got {float(theirs[t]):.6g}"
        )


def _visited(scheduler: Any) -> list[tuple[int, int]]:
    """The timesteps each step goes from and to, -1 for the end."""
    timesteps = [int(t) for t in scheduler.timesteps]
    if isinstance(scheduler, DDIMScheduler):
        stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        return [(t, max(t - stride, -1)) for t in timesteps]
    return [(t, int(scheduler.previous_timestep(t))) for t in timesteps]


def _values(fingerprint: Mapping[str, Any]) -> Tensor:
    return torch.tensor([float(v) for v in fingerprint["latents"].split()])
