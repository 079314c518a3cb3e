"""A gallery, the pictures of one prompt, as pixels or as PIL pictures, and the mask of an object in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from .look.foreground import to_rgb

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "np.ndarray | torch.Tensor"
Gallery: TypeAlias = "Sequence[Image.Image] | np.ndarray | torch.Tensor"
Mask: TypeAlias = "Image.Image | np.ndarray | torch.Tensor"


def to_array(values: Array) -> np.ndarray:
    """Numbers of any type and device as float64 numpy, truth values as 0 and 1."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def to_pixels(gallery: Gallery, *, at_least: int = 1) -> np.ndarray:
    """Pixels in [0, 1], (N, 3, H, W) float64, of PIL pictures of one size or of an array of that shape.

    Raises ValueError on fewer pictures than at_least, on pictures of different sizes or of another type, and
    on an array of another shape or range.
    """
    if isinstance(gallery, Sequence):
        return _stack(gallery, at_least=at_least)
    pixels = to_array(gallery)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape[2:]:
        raise ValueError(f"pixels must be of shape (N, 3, H, W), got {tuple(pixels.shape)}")
    _check_count(len(pixels), at_least)
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"pixels must be in [0, 1], got {pixels.min():.3g} to {pixels.max():.3g}")
    return pixels


def to_pictures(gallery: Gallery) -> list[Image.Image]:
    """8-bit RGB pictures, of any sizes where they came as PIL pictures; Raises as `to_pixels`."""
    if isinstance(gallery, Sequence):
        _check_pictures(gallery)
        _check_count(len(gallery), 1)
        return [to_rgb(picture) for picture in gallery]
    pixels = (to_pixels(gallery) * 255).round().astype(np.uint8)
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in pixels.transpose(0, 2, 3, 1)]


def to_mask(mask: Mask, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, true on the object, for pictures of size (H, W).

    mask: a PIL picture, the object its lighter half; or an (H, W) array of truth values or of 0 and 1.
    Raises ValueError on another size, on other values, and where all or nothing is object.
    """
    if isinstance(mask, Image.Image):
        inside = np.asarray(mask.convert("L")) >= 128
    else:
        values = to_array(mask)
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"mask must hold 0 and 1 only, got {values.min():.3g} to {values.max():.3g}")
        inside = values == 1
    if inside.shape != size:
        raise ValueError(f"mask must be of the pictures' height and width {size}, got {inside.shape}")
    if inside.all() or not inside.any():
        raise ValueError(
            f"mask must hold object and background, got only {'object' if inside.any() else 'background'}"
        )
    return inside


def _stack(pictures: Sequence[Image.Image], *, at_least: int) -> np.ndarray:
    _check_pictures(pictures)
    _check_count(len(pictures), at_least)
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) > 1:
        shown = " and ".join(f"{width} x {height}" for width, height in sizes[:2])
        raise ValueError(f"pictures must be of one size, got {shown}")
    pixels = np.stack([np.asarray(to_rgb(picture)) for picture in pictures])
    return pixels.transpose(0, 3, 1, 2).astype(np.float64) / 255


def _check_pictures(pictures: Sequence[Image.Image]) -> None:
    for i, picture in enumerate(pictures):
        if not isinstance(picture, Image.Image):
            raise ValueError(f"pictures must be PIL images, got {type(picture).__name__} at position {i}")


def _check_count(count: int, at_least: int) -> None:
    if count < at_least:
        plural = "s" if at_least > 1 else ""
        raise ValueError(f"gallery must hold at least {at_least} picture{plural}, got {count}")
