"""How different the pictures of one gallery are: in pixels, in structure, and by a descriptor's features."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from skimage.metrics import structural_similarity

from .pixels import Array, Gallery, to_array, to_pixels

SSIM_SIGMA = 1.5  # of the Gaussian window, 11 pixels wide
SSIM_WINDOW = 11


def pairwise_l2(gallery: Gallery) -> float:
    """Mean over all pairs of the squared pixel distance, itself a mean over pixels and channels, in [0, 1].

    gallery: PIL pictures of one size or (N, 3, H, W) in [0, 1].
    Raises ValueError on fewer than two pictures, or pictures as `to_pixels` rejects them.
    Source: METHODS 3, "Metrics".
    """
    return float(mean_squared_gap(to_pixels(gallery, at_least=2)).mean())


def mean_squared_gap(pixels: np.ndarray) -> np.ndarray:
    """Mean over pairs of the squared difference, entry by entry of (N, ...): twice the unbiased variance.

    Taken from the first picture, so that equal pictures give exactly 0.
    """
    return 2 * (pixels - pixels[:1]).var(axis=0, ddof=1)


def pairwise_ssim(gallery: Gallery) -> float:
    """Mean over all pairs of the structural similarity, 1 where pictures are equal.

    Wang's settings: a Gaussian window of 11 pixels and sigma 1.5, each colour channel on its own.
    gallery: PIL pictures of one size or (N, 3, H, W) in [0, 1].
    Raises ValueError on fewer than two pictures, or on less than 11 pixels a side.
    """
    pixels = to_pixels(gallery, at_least=2)
    height, width = pixels.shape[2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"pictures must be at least {SSIM_WINDOW} pixels a side for SSIM, got {width} x {height}"
        )
    settings = {"gaussian_weights": True, "sigma": SSIM_SIGMA, "use_sample_covariance": False}
    scores = [
        structural_similarity(a, b, channel_axis=0, data_range=1.0, **settings)
        for a, b in combinations(pixels, 2)
    ]
    return float(np.mean(scores))


def mean_similarity(features: Array) -> float:
    """Mean cosine over all pairs of different pictures, in [-1, 1].

    features: (N, D), a row a picture, of any length.
    Raises ValueError on fewer than two rows, another shape, a row of zeros, or what is no number.
    Source: METHODS 3, "Metrics".
    """
    rows = unit_rows(features, at_least=2)
    n = len(rows)
    return float((np.square(rows.sum(axis=0)).sum() - n) / (n * (n - 1)))


def vendi_score(features: Array) -> float:
    """The effective number of different pictures, from 1 (all equal) to N (all orthogonal).

    The exponential of the entropy of the eigenvalues of K / N, K the cosines of all pairs.
    features: (N, D), a row a picture, of any length.
    Raises ValueError on another shape, a row of zeros, or what is no number. Source: METHODS 3, "Metrics".
    """
    rows = unit_rows(features)
    values = np.square(np.linalg.svd(rows, compute_uv=False)) / len(rows)
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def unit_rows(features: Array, *, at_least: int = 1) -> np.ndarray:
    """Features (N, D) as float64 rows of length 1; Raises ValueError as `mean_similarity` says."""
    rows = to_array(features)
    if rows.ndim != 2:
        raise ValueError(f"features must be of shape (N, D), got {tuple(rows.shape)}")
    if len(rows) < at_least:
        plural = "s" if at_least > 1 else ""
        raise ValueError(f"features must be at least {at_least} row{plural}, got {len(rows)}")
    lengths = np.linalg.norm(rows, axis=1)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if bad.size:
        raise ValueError(
            f"features must be finite and not all zero, got row {bad[0]} of length {lengths[bad[0]]}"
        )
    return rows / lengths[:, None]
