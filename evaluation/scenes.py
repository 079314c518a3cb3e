"""One object before many backgrounds: is it kept, do the backgrounds differ, does it sit in them smoothly?"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from .diversity import mean_squared_gap
from .pixels import Array, Gallery, Mask, to_mask, to_pixels

BAND = 5  # pixels on either side of an object's edge
GREY = 0.5

# two pictures (3, H, W) in [0, 1] -> their distance at every pixel (H, W)
DistanceMap = Callable[[np.ndarray, np.ndarray], np.ndarray]


def rmse_foreground(gallery: Gallery, original: Image.Image | Array, mask: Mask) -> float:
    """Root mean square difference from the original on the object, each picture's own, averaged (RMSE-F).

    gallery: PIL pictures of one size or (N, 3, H, W) in [0, 1]; original: a PIL picture or (3, H, W);
    mask: see `to_mask`. Raises ValueError on pictures or a mask that do not fit each other.
    Source: METHODS 3, "Metrics".
    """
    pixels = to_pixels(gallery)
    kept = to_pixels([original] if isinstance(original, Image.Image) else original[None])
    if kept.shape[2:] != pixels.shape[2:]:
        raise ValueError(
            f"original must be of the pictures' height and width {pixels.shape[2:]}, got {kept.shape[2:]}"
        )
    inside = to_mask(mask, pixels.shape[2:])
    squares = np.square(pixels - kept)[:, :, inside]
    return float(np.sqrt(squares.mean(axis=(1, 2))).mean())


def l2_background(gallery: Gallery, mask: Mask) -> float:
    """`pairwise_l2` of the pixels outside the object alone (L2-B).

    gallery: PIL pictures of one size or (N, 3, H, W) in [0, 1]; mask: see `to_mask`.
    Raises ValueError on fewer than two pictures, or a mask that does not fit. Source: METHODS 3, "Metrics".
    """
    pixels = to_pixels(gallery, at_least=2)
    outside = ~to_mask(mask, pixels.shape[2:])
    return float(mean_squared_gap(pixels[:, :, outside]).mean())


def lpips_background(gallery: Gallery, mask: Mask, *, distance: DistanceMap | None = None) -> float:
    """Mean over all pairs of the LPIPS between backgrounds (LPIPS-B).

    The object is painted grey in both pictures, so nothing of it counts, and the map of distances is averaged
    outside it. gallery: PIL pictures of one size or (N, 3, H, W) in [0, 1]; mask: see `to_mask`;
    distance: as `load_lpips` returns it, which is the default; load it once for many galleries.
    Raises ValueError on fewer than two pictures, or a mask that does not fit; ImportError as `load_lpips`.
    Source: METHODS 3, "Metrics".
    """
    pixels = to_pixels(gallery, at_least=2)
    inside = to_mask(mask, pixels.shape[2:])
    distance = distance or load_lpips()
    painted = np.where(inside, GREY, pixels)
    return float(np.mean([distance(a, b)[~inside].mean() for a, b in combinations(painted, 2)]))


def load_lpips(*, net: str = "alex", device: str = "cpu") -> DistanceMap:
    """LPIPS as a map: two pictures (3, H, W) in [0, 1] to their distance at every pixel (H, W).

    net: "alex", "vgg" or "squeeze"; its weights are downloaded on first use.
    Raises ValueError on another net, ImportError without the lpips library and torchvision, which it needs.
    """
    if net not in ("alex", "vgg", "squeeze"):
        raise ValueError(f"net must be alex, vgg or squeeze, got {net!r}")
    lpips = _import("lpips", what="LPIPS")
    import torch

    model = lpips.LPIPS(net=net, spatial=True, verbose=False).to(device)

    @torch.no_grad()
    def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        pair = [torch.from_numpy(picture)[None].float().to(device) for picture in (a, b)]
        return model(*pair, normalize=True)[0, 0].cpu().numpy()

    return distance


def boundary_tv(picture: Image.Image | Array, mask: Mask) -> float:
    """Total variation per pixel in the band around an object's edge, averaged over channels (Boundary-TV).

    The band is every pixel within 5 pixels of the other side of the edge: the mask dilated by a disk of
    radius 5, minus the mask eroded by it; the picture's frame is no edge. Differences to the right and
    downwards count where both pixels lie in the band. The paper gives no more than the band, so figures
    compare methods, not papers.
    picture: a PIL picture or (3, H, W) in [0, 1]; mask: see `to_mask`.
    Raises ValueError on a picture or a mask that do not fit each other. Source: METHODS 3, "Metrics".
    """
    pixels = to_pixels([picture] if isinstance(picture, Image.Image) else picture[None])[0]
    band = boundary_band(to_mask(mask, pixels.shape[1:]))
    across = np.abs(np.diff(pixels, axis=2))[:, band[:, 1:] & band[:, :-1]].sum()
    down = np.abs(np.diff(pixels, axis=1))[:, band[1:] & band[:-1]].sum()
    return float((across + down) / (len(pixels) * band.sum()))


def boundary_band(mask: np.ndarray, *, width: int = BAND) -> np.ndarray:
    """(H, W) bool, true within `width` pixels of the other side of a (H, W) bool mask's edge."""
    inwards, outwards = (ndimage.distance_transform_edt(side) for side in (mask, ~mask))
    return np.maximum(inwards, outwards) <= width


def brisque(gallery: Gallery) -> np.ndarray:
    """BRISQUE of each picture (N,) float64, lower is more natural; about 0 to 100.

    gallery: PIL pictures of one size or (N, 3, H, W) in [0, 1]. Its weights are downloaded on first use.
    Raises ImportError without the piq library and torchvision, which it needs.
    """
    pixels = to_pixels(gallery)
    piq = _import("piq", what="BRISQUE")
    import torch

    scores = [piq.brisque(torch.from_numpy(picture)[None].float(), data_range=1.0) for picture in pixels]
    return np.array([float(score) for score in scores])


def _import(library: str, *, what: str) -> Any:
    """An optional library; Raises ImportError that says what to install."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(
            f"{what} needs the {library} library and torchvision: pip install {library} torchvision ({error})"
        ) from error
