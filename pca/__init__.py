"""The start distribution: what training and inference share."""

from .diagnosis import ClassDiagnosis, Diagnosis, Outlier, PictureNumbers, diagnose, read_pictures
from .distribution import ANY_CLASS, FAMILIES, StartDistribution
from .fingerprint import check_text, check_vae, encode_mean, text_fingerprint, vae_fingerprint
from .fit import fit_statistics
from .offset import offset_target
from .samplers import DEFAULT_SAMPLERS, Sampler, build_scheduler, first_timestep, offset_from
from .statistics import Statistics

__all__ = [
    "ANY_CLASS",
    "DEFAULT_SAMPLERS",
    "FAMILIES",
    "ClassDiagnosis",
    "Diagnosis",
    "Outlier",
    "PictureNumbers",
    "Sampler",
    "StartDistribution",
    "Statistics",
    "build_scheduler",
    "check_text",
    "check_vae",
    "diagnose",
    "encode_mean",
    "first_timestep",
    "fit_statistics",
    "offset_from",
    "offset_target",
    "read_pictures",
    "text_fingerprint",
    "vae_fingerprint",
]
