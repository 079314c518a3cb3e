"""Samplers that add noise of their own, which blurs what a coupling set."""

import inspect
import warnings
from typing import Any

ALWAYS_ADD = {
    "CMStochasticIterativeScheduler", "DDPMParallelScheduler", "DDPMScheduler", "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler", "FlowMatchLCMScheduler", "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
}  # fmt: skip


def adds_noise(scheduler: Any, eta: float = 0.0) -> bool:
    """Whether a scheduler of diffusers adds fresh noise while it samples, which blurs what a coupling set.

    eta: as given to the pipeline, which tells DDIM's and TCD's step; it stands for no noise at 0.
    """
    if "eta" in inspect.signature(scheduler.step).parameters:
        return eta > 0
    if any(kind.__name__ in ALWAYS_ADD for kind in type(scheduler).__mro__):
        return True
    if hasattr(scheduler, "tau_func"):
        return any(scheduler.tau_func(t) > 0 for t in range(scheduler.config.num_train_timesteps))
    config = scheduler.config
    return str(config.get("algorithm_type")).startswith("sde") or bool(config.get("stochastic_sampling"))


def warn_of_fresh_noise(scheduler: Any, eta: float, *, stacklevel: int) -> None:
    """Warns where the scheduler adds noise to pictures whose initial noises are coupled."""
    if adds_noise(scheduler, eta):
        message = (
            f"{type(scheduler).__name__} adds fresh noise while it samples, which blurs the coupling of the "
            "initial noises: take one that does not, such as DDIM, DPM-Solver++ or Euler"
        )
        warnings.warn(message, stacklevel=stacklevel + 1)
