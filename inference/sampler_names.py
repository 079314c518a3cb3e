"""Short names of samplers: which scheduler class of diffusers each means, and with which config."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import diffusers

MULTISTEP = "DPMSolverMultistepScheduler"
SHORT_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm++": (MULTISTEP, {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    "dpm++-karras": (MULTISTEP, {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpm++-sde": (MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": False}),
    "dpm++-sde-karras": (MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    "dpm2": ("KDPM2DiscreteScheduler", {"use_karras_sigmas": False}),
    "dpm2-a": ("KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": False}),
    "euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": False}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": False}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {"use_karras_sigmas": False}),
    "pndm": ("PNDMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}),
}

# the names that A1111 and its followers show
FAMILIAR = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "EulerDiscreteScheduler": "Euler",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2DiscreteScheduler": "DPM2",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "LCMScheduler": "LCM",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}


def find_sampler(name: str) -> tuple[str, dict[str, Any]]:
    """The scheduler class, and config to set on it, that a short name or a class name of diffusers means.

    Raises ValueError, with the nearest names, on any other.
    """
    if name.lower() in SHORT_NAMES:
        scheduler, config = SHORT_NAMES[name.lower()]
        return scheduler, dict(config)
    classes = [known for known in dir(diffusers) if known.endswith("Scheduler")]
    if name in classes:
        return name, {}
    known = {key.lower(): key for key in (*SHORT_NAMES, *classes)}
    nearest = [known[match] for match in get_close_matches(name.lower(), known, n=2)]
    hint = f" (nearest: {', '.join(nearest)})" if nearest else ""
    raise ValueError(
        f"scheduler must be one of {', '.join(SHORT_NAMES)} or a scheduler class of diffusers{hint}, "
        f"got {name!r}"
    )


def familiar_name(scheduler: str, config: Mapping[str, Any]) -> str:
    """The name that A1111 shows for a scheduler class with this config; the class's own where it has none."""
    name = FAMILIAR.get(scheduler, scheduler.removesuffix("Scheduler"))
    if config.get("algorithm_type") == "sde-dpmsolver++":
        name += " SDE"
    return f"{name} Karras" if config.get("use_karras_sigmas") else name
