"""A small descriptor of studio pictures, for measurements where no published one can be had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data.studio import Shot
from .classifier import ProductClassifier
from .gate import load_classifier
from .pictures import draw
from .vae import to_pixels

REFERENCE_PICTURES = 2000
DIMENSIONS = 128
SIDE = 64


class StudioDescriptor:
    """The packaged classifier's last features, (N, 128) float32 rows of length 1, of pictures of any size.

    2 x 2 places, whitened on studio pictures of the wild look, so that the cosine of two unrelated pictures
    is near 0 as with the published descriptors.
    """

    name = f"studio classifier, 2 x 2 features whitened to {DIMENSIONS}"

    def __init__(self) -> None:
        self.model: ProductClassifier = load_classifier()
        reference = self._raw(draw([Shot("wild", SIDE, 11, i) for i in range(REFERENCE_PICTURES)]))
        self.mean = reference.mean(0)
        values, axes = torch.linalg.eigh(torch.cov(reference.T.double()))
        self.whiten = (axes[:, -DIMENSIONS:] / values[-DIMENSIONS:].sqrt()).float()

    def __call__(self, pictures: Sequence[Image.Image] | Any) -> Tensor:
        """See the class."""
        fitted = [
            picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for picture in pictures
        ]
        raw = self._raw(np.stack([np.asarray(picture) for picture in fitted]))
        return F.normalize((raw - self.mean) @ self.whiten)

    @torch.no_grad()
    def _raw(self, pictures: np.ndarray) -> Tensor:
        batches = [to_pixels(pictures[i : i + 128]) for i in range(0, len(pictures), 128)]
        maps = torch.cat([self.model.features(pixels) for pixels in batches])
        return F.adaptive_avg_pool2d(maps, 2).flatten(1)
