"""Swap: one noise's own blocks rearranged so that each concept's best ones lie where a layout wants it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..noise import Initializer
from .attention_maps import capture_maps, find_layer
from .blocks import cut, paste
from .first_pass import normalised, plain_unet
from .guidance import words_in
from .layouts import WINNERS, Layout, covered


@dataclass(frozen=True)
class Swap:
    """An initializer that puts the blocks of `inner`'s noise elsewhere, none added and none lost.

    Scores are the cross-attention maps of the actual prompt at the first step. Every block belongs to the
    concept it scores highest on; a region takes its concept's best blocks, and where they are too few the
    best of those that no region took. Blocks that need not move stay. inner: may itself follow the layout, as
    winning tickets do; a coupling's pictures are rearranged one by one, which loosens the coupling.
    layer: of the maps, see `find_layer`. Source: METHODS 4.
    """

    layout: Layout
    inner: Initializer
    layer: str | None = None

    def draw(self, num_images: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """The inner initializer's noise (num_images, *shape)."""
        return self.inner.draw(num_images, shape, generator)

    def refine(self, eps: Tensor, predict: Any) -> Tensor:
        """eps (N, C, H, W) rearranged; predict: as the pipeline hands it over.

        Raises ValueError on a layer that is none or must be named, a prompt given by its embeddings alone,
        concepts that do not stand whole in it, and boxes that do not fit the latents.
        """
        if hasattr(self.inner, "refine"):
            eps = self.inner.refine(eps, predict)
        pipeline = predict.pipeline
        unet = plain_unet(pipeline)
        layer, block = find_layer(unet, self.layer)
        blocks = cut(eps, block)
        regions = covered(
            self.layout,
            (eps.shape[-2], eps.shape[-1]),
            block=block,
            pixels_per_latent=pipeline.vae_scale_factor,
        )
        regions.pop(WINNERS, None)  # whatever no concept takes
        with prompts_of(pipeline) as prompts, capture_maps(unet, layer) as maps:
            predict(eps)
        words = words_in(pipeline, prompts[-1], list(regions))
        conditional = maps[0][-len(eps) :].cpu()  # the negative prompt's rows come first
        scores = torch.stack([normalised(conditional[..., own].mean(-1)) for own in words])
        wanted = torch.stack(list(regions.values())).flatten(1)
        moved = [
            picture.flatten(0, 1)[rearrangement(own, wanted)]
            for picture, own in zip(blocks, scores.unbind(1), strict=True)
        ]
        return paste(torch.stack(moved).unflatten(1, blocks.shape[1:3]))


@contextmanager
def prompts_of(pipeline: Any) -> Iterator[list[Any]]:
    """A list that each call of the pipeline inside the block adds its prompt to, None for embeddings."""
    encode, own = pipeline.encode_prompt, vars(pipeline).get("encode_prompt")
    signature = inspect.signature(encode)
    prompts: list[Any] = []

    @functools.wraps(encode)
    def noting(*args: Any, **named: Any) -> Any:
        prompt = signature.bind(*args, **named).arguments.get("prompt")
        prompts.append(prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt)
        return encode(*args, **named)

    pipeline.encode_prompt = noting
    try:
        yield prompts
    finally:
        if own is None:
            del pipeline.encode_prompt
        else:
            pipeline.encode_prompt = own


def rearrangement(scores: Tensor, regions: Tensor) -> Tensor:
    """Which block each cell gets, a permutation (cells,) long.

    scores: (concepts, cells) float; regions: (concepts, cells) bool, apart from each other.
    """
    taken = _chosen(scores, regions.sum(dim=1).tolist())
    source = torch.arange(scores.shape[1])
    moving = torch.zeros_like(regions[0])
    for blocks, region in zip(taken, regions, strict=True):
        here = torch.zeros_like(region)
        here[blocks] = True
        source[region & ~here] = blocks[~region[blocks]]
        moving |= here
    rest = ~regions.any(dim=0)
    source[rest & moving] = (~rest & ~moving).nonzero()[:, 0]
    return source


def _chosen(scores: Tensor, needed: list[int]) -> list[Tensor]:
    """Each concept's blocks, the best first: of its own, then of those left over."""
    likeliest = scores.argmax(dim=0)
    taken: list[Tensor] = []
    free = torch.ones_like(likeliest, dtype=torch.bool)
    for concept, count in enumerate(needed):
        own = _best(scores[concept], likeliest == concept)[:count]
        free[own] = False
        taken.append(own)
    for concept, count in enumerate(needed):
        more = _best(scores[concept], free)[: count - len(taken[concept])]
        free[more] = False
        taken[concept] = torch.cat([taken[concept], more])
    return taken


def _best(scores: Tensor, allowed: Tensor) -> Tensor:
    """The allowed cells, best first, of equal ones the earlier."""
    order = scores.sort(descending=True, stable=True).indices
    return order[allowed[order]]
