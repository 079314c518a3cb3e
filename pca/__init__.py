"""The start distribution: what training and inference share."""

from .distribution import StartDistribution
from .fingerprint import check_vae, encode_mean, vae_fingerprint
from .fit import Statistics, fit_statistics
from .offset import offset_target
from .samplers import DEFAULT_SAMPLERS, Sampler, build_scheduler, first_timestep, offset_from

__all__ = [
    "DEFAULT_SAMPLERS",
    "Sampler",
    "StartDistribution",
    "Statistics",
    "build_scheduler",
    "check_vae",
    "encode_mean",
    "first_timestep",
    "fit_statistics",
    "offset_from",
    "offset_target",
    "vae_fingerprint",
]
