"""Catalogue -> pictures, captions and class ids -> cached scaled latents."""

from .catalogue import Catalogue, load_catalogue
from .latents import LatentCache, cache_latents
from .picture import Picture
from .table import catalogue_table
from .transform import ImageTransform

__all__ = [
    "Catalogue",
    "ImageTransform",
    "LatentCache",
    "Picture",
    "cache_latents",
    "catalogue_table",
    "load_catalogue",
]
