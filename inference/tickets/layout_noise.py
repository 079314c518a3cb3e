"""Initial noise that follows a layout: winning tickets in its regions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..noise import Initializer
from .blocks import cut, paste
from .layouts import Layout, covered


@dataclass(frozen=True)
class LayoutNoise:
    """An initializer: winning tickets in a layout's boxes, the rest fresh noise or the background's winners.

    pools: blocks (n, C, b, b) by concept, under WINNERS the background's; recalibrate: bring each picture to
    mean 0 and variance 1; background: draws what no ticket covers (None: independent noise), so a coupled
    gallery keeps its coupling there. report: by concept how many tickets won, which fell back, and how many
    its region takes. Tickets are picked for every picture anew. Make it by `TicketCollection.layout_noise`.
    """

    layout: Layout
    pools: Mapping[str, Tensor]
    block: int
    pixels_per_latent: int = 8
    recalibrate: bool = False
    background: Initializer | None = None
    report: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def draw(self, num_images: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Noise (num_images, *shape) float32 on the CPU; the same generator state gives the same noise.

        A region's blocks are picked without replacement, and in full passes where there are too few.
        Raises ValueError on a shape that the layout or its tickets do not fit.
        """
        channels = next(iter(self.pools.values())).shape[1]
        if shape[0] != channels:
            raise ValueError(f"shape must have {channels} channels as the tickets have, got {shape[0]}")
        if self.background is None:
            eps = torch.randn(num_images, *shape, generator=generator)
        else:
            eps = self.background.draw(num_images, shape, generator)
        blocks = cut(eps, self.block).clone()
        factor, size = self.pixels_per_latent, (shape[1], shape[2])
        regions = covered(self.layout, size, block=self.block, pixels_per_latent=factor)
        for concept, region in regions.items():
            pool, needed = self.pools[concept], int(region.sum())
            for picture in blocks:
                picture[region] = pool[pick(len(pool), needed, generator)]
        noise = paste(blocks)
        return recalibrated(noise) if self.recalibrate else noise


def pick(count: int, needed: int, generator: torch.Generator | None) -> Tensor:
    """Indices (needed,) below count at random: without replacement, in full passes if there are too few."""
    passes = [torch.randperm(count, generator=generator) for _ in range(math.ceil(needed / count))]
    return torch.cat([*passes, torch.empty(0, dtype=torch.long)])[:needed]


def recalibrated(noise: Tensor) -> Tensor:
    """Each picture of (N, C, H, W) brought to mean 0 and variance 1 over all its values."""
    std, mean = torch.std_mean(noise, dim=(1, 2, 3), keepdim=True, correction=0)
    return (noise - mean) / std
