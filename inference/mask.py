"""Where the object of a picture is: a mask from a file or found by its backdrop, fitted as the picture is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..evaluation.look.foreground import product_mask
from ..pca.rgb import upright
from .picture import fit_to_frame


def object_mask(
    image: Image.Image,
    mask: Image.Image | str | Path | None = None,
    *,
    height: int,
    width: int,
    fit: str = "crop",
) -> Tensor:
    """(H, W) bool, true on the object, of the picture fitted to height x width by `fit_to_frame`.

    mask: a picture of the image's size or its file, the object its lighter half, transparent parts no
    object; None: what stands out from the backdrop that the border shows, by the audit's own test.
    Raises ValueError on a mask of another size, and where all or nothing is object.
    """
    image = upright(image)
    found = mask is None
    if mask is None:
        mask = product_mask(image)
    elif not isinstance(mask, Image.Image):
        mask = Image.open(mask)
    mask = upright(mask)
    if mask.size != image.size:
        expected, got = [f"{size[0]} x {size[1]}" for size in (image.size, mask.size)]
        raise ValueError(f"mask must be of the picture's size {expected}, got {got}")
    fitted = fit_to_frame(mask, height, width, fit=fit, backdrop="black").convert("L")
    inside = torch.from_numpy(np.asarray(fitted) >= 128)
    if inside.all() or not inside.any():
        only = "object" if inside.any() else "background"
        hint = " where it was found by the backdrop: give a mask" if found else ""
        raise ValueError(f"mask must hold object and background, got only {only}{hint}")
    return inside


def latent_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) bool of a mask (H, W): true where any pixel of the latent is of the object (max-pool).

    Raises ValueError where no latent is left to the background.
    """
    inside = functional.adaptive_max_pool2d(mask.float()[None, None], size)[0, 0] > 0
    if inside.all():
        raise ValueError("mask must leave background in the latents, got an object that touches all of them")
    return inside
