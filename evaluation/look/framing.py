"""Pictures of one shape are compared as they are; of several, in squares filled with their own backdrop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageOps

from .foreground import LONGEST_SIDE, SMALLEST_SIDE, border_ring, to_rgb

SAME_SHAPE = 1.02  # ratio of two aspect ratios up to which they are one


def one_shape(sizes: Iterable[tuple[int, int]]) -> bool:
    """Whether all (width, height) have the same width for their height, within 2 %."""
    ratios = [width / height for width, height in sizes]
    return not ratios or max(ratios) <= SAME_SHAPE * min(ratios)


def shrunk(picture: Image.Image, side: int) -> Image.Image:
    """RGB, in its own shape, the longer side at most `side` pixels."""
    picture = to_rgb(picture)
    if max(picture.size) <= side:
        return picture
    return ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)


def squared(picture: Image.Image, side: int) -> Image.Image:
    """RGB, (side, side): the whole picture, the rest filled with the median colour of its border.

    On a filled side the product no longer touches the picture's edge: cropping there goes unseen.
    """
    picture = shrunk(picture, side)
    pixels = np.asarray(picture)
    red, green, blue = np.median(pixels[border_ring(*pixels.shape[:2])], axis=0).round().astype(int).tolist()
    return ImageOps.pad(picture, (side, side), Image.Resampling.LANCZOS, color=(red, green, blue))


def measurable(size: tuple[int, int], side: int) -> bool:
    """Whether a picture of this (width, height), `shrunk` to side, has the 8 x 8 pixels that are measured."""
    scale = min(1.0, min(side, LONGEST_SIDE) / max(size))
    return round(scale * min(size)) >= SMALLEST_SIDE


def fit_for(sizes: Iterable[tuple[int, int]]) -> Callable[[Image.Image, int], Image.Image]:
    """How pictures of these (width, height) are to be fitted: `shrunk` when all are of one shape, else
    `squared`."""
    return shrunk if one_shape(sizes) else squared
