"""The shadow a product throws on the backdrop where it stands: how much of it, and how dark."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from .box import Box

REACH = 0.08  # of the frame's longer side: how far from the product's foot a shadow is looked for
FAINTEST, DARKEST = 1.0, 60.0  # steps of L a shadow makes: less is noise, more is an object
SAME_HUE = 6.0  # distance in (a, b) from the darkened backdrop
STEEPEST = 3.0  # L a pixel at 256 pixels: beyond it is an edge, and a shadow is soft

SHADOW_MEASURES = ("shadow", "shadow_depth")


def shadow_of(lab: np.ndarray, background: np.ndarray, mask: np.ndarray, box: Box) -> dict[str, float]:
    """What darkens the backdrop around the foot of the product, in L.

    lab: (H, W, 3); background: (3,) the backdrop's Lab; mask: (H, W) bool, the product; box: its box.
    shadow: mean darkening of the backdrop within 8 % of the frame of the foot, the product left out.
    shadow_depth: median over its columns of the darkest soft, colourless darkening there, the product's own
    pixels included, because a dark shadow is taken for a part of the product. NaN where there is no
    backdrop around the foot.
    """
    height, width = mask.shape
    reach = max(2, round(REACH * max(height, width)))
    rows = slice(max(0, box.bottom - reach), box.bottom + reach)
    columns = slice(max(0, box.left - reach // 2), box.right + reach // 2)
    near = lab[rows, columns].astype(np.float64)
    darker = background[0] - near[..., 0]
    around = ~ndimage.binary_dilation(mask, iterations=1)[rows, columns]
    # a shadow darkens all three channels alike, which scales a and b with L + 16
    shade = (near[..., 0] + 16) / (background[0] + 16)
    hue = np.hypot(*(near[..., i] - background[i] * shade for i in (1, 2)))
    steepness = ndimage.gaussian_gradient_magnitude(near[..., 0], 1.0)
    soft = steepness < STEEPEST * 256 / max(height, width)
    shadowed = (hue < SAME_HUE) & (darker > FAINTEST) & (darker < DARKEST) & soft
    return {
        "shadow": float(darker[around].clip(0).mean()) if around.any() else math.nan,
        "shadow_depth": float(np.median((darker * shadowed).max(axis=0))),
    }
