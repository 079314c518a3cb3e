"""The simplest descriptor: what a picture looks like from afar, less what all of them look like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .look.foreground import to_rgb

SIDE = 16


class Thumbnails:
    """Features (N, 768) float32, rows of length 1: pictures shrunk to 16 x 16, less their reference's mean.

    It needs no weights and tells layouts and colours apart, no more; a catalogue's common white is in the
    mean. reference: pictures whose mean is taken away. Raises ValueError on none.
    """

    name = f"thumbnails of {SIDE} x {SIDE}"

    def __init__(self, reference: Sequence[Image.Image]) -> None:
        if not reference:
            raise ValueError("reference must be at least one picture, got none")
        self.mean = _shrunk(reference).mean(axis=0)

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """See the class."""
        rows = _shrunk(pictures) - self.mean
        return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-6)).float()


def _shrunk(pictures: Sequence[Image.Image]) -> np.ndarray:
    small = [to_rgb(picture).resize((SIDE, SIDE), Image.Resampling.BOX) for picture in pictures]
    return np.stack([np.asarray(one, dtype=np.float64).ravel() / 255 for one in small])
