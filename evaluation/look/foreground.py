"""What one picture shows: its backdrop read off the border ring, and the product standing on it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.color import deltaE_ciede2000, rgb2lab

from .box import box_of
from .kind import features_of
from .pose import outline
from .shading import light_slope
from .shadow import SHADOW_MEASURES, shadow_of

LONGEST_SIDE = 256  # larger pictures are shrunk to this before measuring
SMALLEST_SIDE = 8  # fewer pixels, once shrunk, are not measured
RING_WIDTH = 0.06  # of the shorter side, at least 2 pixels
RING_QUANTILE = 0.95  # uniformity lets 5 % of the ring be specks

# Delta E from the backdrop above which a pixel belongs to the product. CIEDE2000 weighs a step in
# lightness near white by about 0.6, so a soft grey shadow (L 97 to 89) stays backdrop while a pale
# product of the same lightness does not.
FOREGROUND_DELTA_E = 6.0
SMALLEST_PART = 0.02  # parts below this share of the largest one are specks
RING_SHARE = 1 / 3  # a product may cover this much of the ring; beyond it the ring is no backdrop

MEASURES = (
    "background_l",
    "background_a",
    "background_b",
    "uniformity",
    "frame_contact",
    "offset_x",
    "offset_y",
    "extent",
    "area",
    "lightness",
    "contrast",
    "light_slope",
    *SHADOW_MEASURES,
)


class Look(NamedTuple):
    """One picture as the audit sees it, before it is compared with any catalogue.

    values: see `measure`; outline: the product's, (24, 24) uint8, None without a product; features: what
    kind of picture it is, (D,) float32.
    """

    values: dict[str, float]
    outline: np.ndarray | None
    features: np.ndarray


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB, transparent parts laid on white and 16-bit grey scaled down.

    The pixels are those of `pca.rgb.to_rgb`, without turning and without torch.
    Raises ValueError on float pixels (their scale is unknown).
    """
    if image.mode == "F":
        raise ValueError("picture pixels must be 8-bit or 16-bit, got mode 'F'")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float32).clip(0, 65535) / 257
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_lab(image: Image.Image) -> np.ndarray:
    """The picture as CIE Lab (D65), (H, W, 3) float32, its longer side at most 256 pixels."""
    image = to_rgb(image)
    if max(image.size) > LONGEST_SIDE:
        scale = LONGEST_SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.LANCZOS)
    return rgb2lab(np.asarray(image, dtype=np.float32) / 255).astype(np.float32)


def border_ring(height: int, width: int) -> np.ndarray:
    """(H, W) bool, true in the outer 6 % of the shorter side, at least 2 pixels wide."""
    thickness = max(2, round(RING_WIDTH * min(height, width)))
    ring = np.ones((height, width), dtype=bool)
    ring[thickness:-thickness, thickness:-thickness] = False
    return ring


def foreground_mask(distance: np.ndarray) -> np.ndarray:
    """The product in a map of Delta E from the backdrop: its largest part and all parts of like size.

    distance: (H, W) float. Returns (H, W) bool, all false where nothing stands out.
    """
    parts, count = ndimage.label(distance > FOREGROUND_DELTA_E, structure=np.ones((3, 3)))
    if count == 0:
        return np.zeros(distance.shape, dtype=bool)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    # a speck alone on the backdrop is noise, not a product
    kept = sizes >= max(SMALLEST_PART * sizes.max(), 1e-3 * distance.size)
    return ndimage.binary_fill_holes(kept[parts])


def product_mask(image: Image.Image) -> Image.Image:
    """The product as white on black, mode L, at the picture's size: what differs from the border's colour.

    Raises ValueError when the picture is too small to measure.
    """
    mask = foreground_mask(_backdrop_and_distance(to_lab(image))[1])
    return Image.fromarray(mask).convert("L").resize(image.size, Image.Resampling.BILINEAR)


def _backdrop_and_distance(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median Lab of the border ring, and every pixel's CIEDE2000 (H, W) from it."""
    height, width = lab.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(f"image must be at least 8 x 8 pixels once shrunk to 256, got {width} x {height}")
    backdrop = np.median(lab[border_ring(height, width)], axis=0)
    return backdrop, deltaE_ciede2000(lab, backdrop[None, None])


def measure(image: Image.Image) -> dict[str, float]:
    """Backdrop, framing, light and shadow of one picture, as named numbers.

    image: any PIL picture of at least 8 x 8 pixels. background_l/a/b: median CIE Lab of the border ring.
    uniformity: CIEDE2000 from that median which 95 % of the ring's backdrop stays within. frame_contact:
    share of the outermost line of pixels that the product covers. offset_x, offset_y: centre of the
    product's box from the picture's centre, fractions of width and height, right and down positive.
    extent: the box's longer side, area: pixels covered, both fractions of the frame. lightness: mean L of
    the product; contrast: its 95 % minus its 5 % quantile of L; light_slope: see `shading.light_slope`;
    shadow, shadow_depth: see `shadow.shadow_of`. A picture without a product has extent and area 0 and NaN
    for what only a product has.
    Raises ValueError when the picture is too small to measure.
    """
    return look(image).values


def look(image: Image.Image) -> Look:
    """Everything the audit takes from a picture; Raises as `measure`."""
    if min(image.size) < SMALLEST_SIDE:
        raise ValueError(f"image must be at least 8 x 8 pixels, got {image.width} x {image.height}")
    lab = to_lab(image)
    height, width = lab.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"image must be at most 32 times as long as wide, got {image.width} x {image.height}"
        )
    background, distance = _backdrop_and_distance(lab)
    mask = foreground_mask(distance)
    values = dict.fromkeys(MEASURES, math.nan)
    values.update(zip(("background_l", "background_a", "background_b"), background.tolist(), strict=True))
    values["uniformity"] = _uniformity(distance, mask)
    frame = np.ones_like(mask)
    frame[1:-1, 1:-1] = False
    values["frame_contact"] = float(mask[frame].mean())
    values["extent"] = values["area"] = 0.0
    features = features_of(lab)
    if not mask.any():
        return Look(values, None, features)
    box = box_of(mask)
    dark, bright = np.quantile(lab[..., 0][mask], (0.05, 0.95))
    values |= {
        "offset_x": (box.left + box.right) / (2 * width) - 0.5,
        "offset_y": (box.top + box.bottom) / (2 * height) - 0.5,
        "extent": max(box.width / width, box.height / height),
        "area": float(mask.mean()),
        "lightness": float(lab[..., 0][mask].mean()),
        "contrast": float(bright - dark),
        "light_slope": light_slope(lab[..., 0], mask, box),
        **shadow_of(lab, background, mask, box),
    }
    return Look(values, outline(mask, box), features)


def _uniformity(distance: np.ndarray, mask: np.ndarray) -> float:
    """How far the ring's backdrop strays, its 95 % quantile of Delta E.

    A product that reaches into the ring is cropping's business. Once it covers more than a third of the ring
    there is no telling product from backdrop, and the whole ring counts.
    """
    ring = border_ring(*mask.shape)
    backdrop = ring & ~ndimage.binary_dilation(mask, iterations=1)  # its soft edge is no backdrop either
    if backdrop.sum() < (1 - RING_SHARE) * ring.sum():
        backdrop = ring
    return float(np.quantile(distance[backdrop], RING_QUANTILE))
