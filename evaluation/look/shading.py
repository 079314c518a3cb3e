"""From which side a product is lit, whatever its colour: is its right half brighter than its left?"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from .box import Box

FOOT = 0.15  # of the box's height, left out: a shadow there would be taken for the product
INNERMOST = 0.3  # pairs nearer to the middle than this say little
FEWEST = 20  # pairs


def light_slope(lightness: np.ndarray, mask: np.ndarray, box: Box) -> float:
    """Relative change of luminance from the product's middle to its right end; negative: lit from the left.

    lightness: (H, W) CIE L; mask: (H, W) bool; box: the product's. The median over pairs of pixels that
    mirror each other in the box: the colour of a plain, striped or dotted product is alike on both sides
    and drops out. NaN with fewer than 20 pairs.
    """
    foot = box.bottom - round(FOOT * box.height)
    inside = ndimage.binary_erosion(mask, iterations=2)[box.top : foot, box.left : box.right]
    # L + 16 is the cube root of luminance, up to a factor
    luminance = 3 * np.log(lightness[box.top : foot, box.left : box.right].astype(np.float64) + 16)
    half = box.width // 2
    left, right = luminance[:, :half], luminance[:, ::-1][:, :half]
    place = 1 - (2 * np.arange(half) + 1) / box.width  # from the middle, 1 at the ends
    pairs = inside[:, :half] & inside[:, ::-1][:, :half] & (place > INNERMOST)
    if pairs.sum() < FEWEST:
        return math.nan
    return float(np.median(((right - left) / (2 * place))[pairs]))
