"""A small classifier of studio products by kind and colour: the judge of whether prompts are followed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.studio import CLASSES, COLOURS, Shot
from .loop import optimise
from .pictures import draw
from .vae import to_pixels

COLOUR_NAMES = sorted(COLOURS)
STEPS, BATCH, LEARNING_RATE = 4000, 64, 3e-3


class ProductClassifier(nn.Module):
    """Logits for every kind and every (kind, colour) present in (B, 3, 64, 64) pixels in [-1, 1].

    Output (B, kinds, 1 + colours): whether a kind is in the picture, and in which colour it would be.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Conv2d(widths[-1], len(CLASSES) * (1 + len(COLOUR_NAMES)), 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        places = self.head(self.features(pixels)).unflatten(1, (len(CLASSES), -1))
        present = places[:, :, 0].flatten(2).logsumexp(-1)
        # colour is read where the kind is seen
        where = places[:, :, 0].flatten(2).softmax(-1)[:, :, None]
        return torch.cat([present[..., None], (places[:, :, 1:].flatten(3) * where).sum(-1)], dim=-1)


def train_classifier(*, work: Path, pictures: int = 48_000, steps: int = STEPS) -> ProductClassifier:
    """A classifier trained on both looks of the studio."""
    shots = [Shot(look, 64, 7, i) for i in range(pictures // 2) for look in ("wild", "on-brand")]
    pixels = draw(shots)
    kinds = torch.zeros(len(shots), len(CLASSES))
    colours = torch.full((len(shots), len(CLASSES)), -100)
    for row, shot in enumerate(shots):
        for product in shot.cast():
            kinds[row, CLASSES.index(product.kind)] = 1
            colours[row, CLASSES.index(product.kind)] = COLOUR_NAMES.index(product.colour)
    torch.manual_seed(0)
    model = ProductClassifier()

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(shots), (BATCH,), generator=generator)
        logits = model(to_pixels(pixels[rows.numpy()]))
        seen = F.binary_cross_entropy_with_logits(logits[..., 0], kinds[rows])
        return seen + F.cross_entropy(logits[..., 1:].flatten(0, 1), colours[rows].flatten())

    optimise(model, loss_of, name="classifier", work=work, steps=steps, learning_rate=LEARNING_RATE)
    return model.eval()


@torch.no_grad()
def read(model: ProductClassifier, pictures: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Presence probability and most likely colour's index, (N, kinds) each, of (N, 64, 64, 3) uint8."""
    logits = torch.cat([model(to_pixels(pictures[i : i + 128])) for i in range(0, len(pictures), 128)])
    return logits[..., 0].sigmoid(), logits[..., 1:].argmax(-1)
