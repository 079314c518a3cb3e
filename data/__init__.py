"""Catalogue -> pictures, captions and class ids -> cached scaled latents."""

from .buckets import Buckets, assign_buckets
from .catalogue import Catalogue, load_catalogue
from .latents import LatentCache, cache_latents
from .picture import Picture
from .processes import Processes
from .table import catalogue_table
from .transform import ImageTransform

__all__ = [
    "Buckets",
    "Catalogue",
    "ImageTransform",
    "LatentCache",
    "Picture",
    "Processes",
    "assign_buckets",
    "cache_latents",
    "catalogue_table",
    "load_catalogue",
]
