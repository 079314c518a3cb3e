"""What collecting winning tickets costs: `python benchmarks/tickets.py [NOISES [CONCEPTS [BASE]]]`

The naive way runs the whole UNet with guidance for every noise and pair of concepts, one noise at a time
(batch 1) or a batch of them, and reads the map from a processor that keeps its probabilities. Ours stops at
the map, without guidance, in batches, and runs what is before the first cross-attention once a noise. Prints
seconds, noises x pairs a second, how much faster, and the largest difference of a score. Runs on the CPU, by
default the tiny base; concepts are words of the studio, each one token.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from onbrand.data.studio import CLASSES
from onbrand.inference import OffsetStableDiffusionPipeline, TicketCollection
from onbrand.inference.tickets.blocks import seeded_noise
from onbrand.train.models import TINY_BASE
from rich.console import Console
from rich.table import Table
from torch import Tensor

STEPS, GUIDANCE = 50, 7.5


class KeepingProcessor:
    """The plain attention formula, one einsum after the other; keeps the probabilities (B, heads, L, T)."""

    kept: Tensor

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **unused: Any
    ) -> Tensor:
        query, key, value = (
            x.reshape(*x.shape[:2], attn.heads, -1)
            for x in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        logits = torch.einsum("blhd,bthd->bhlt", query, key) / query.shape[-1] ** 0.5
        self.kept = logits.softmax(-1)
        out = torch.einsum("bhlt,bthd->blhd", self.kept, value).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


@torch.no_grad()
def naive(pipe: Any, concepts: list[str], *, noises: int, layer: str, batch: int) -> Tensor:
    """Scores (concepts, concepts, noises, cells) as one would first write it."""
    processor = KeepingProcessor()
    pipe.unet.get_submodule(layer).set_processor(processor)
    pipe.scheduler.set_timesteps(STEPS)
    shape = (pipe.unet.config.in_channels, *[pipe.unet.config.sample_size] * 2)
    scores: Tensor | None = None
    for i, j in combinations(range(len(concepts)), 2):
        for first in range(0, noises, batch):
            eps = seeded_noise(range(first, min(first + batch, noises)), shape)
            prompt = f"a {concepts[i]} and a {concepts[j]}"
            text, empty = pipe.encode_prompt(prompt, "cpu", len(eps), True)
            both, texts = torch.cat([eps, eps]), torch.cat([empty, text])
            output = pipe.unet(both, pipe.scheduler.timesteps[0], texts).sample
            without, with_text = output.chunk(2)
            without + GUIDANCE * (with_text - without)
            maps = processor.kept.chunk(2)[1].mean(1)
            if scores is None:
                scores = torch.full((len(concepts), len(concepts), noises, maps.shape[1]), torch.nan)
            for own, other, position in ((i, j, 2), (j, i, 5)):
                level = maps[:, :, position]
                low, high = level.amin(1, keepdim=True), level.amax(1, keepdim=True)
                scores[own, other, first : first + len(eps)] = (level - low) / (high - low)
    assert scores is not None
    return scores


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    began = time.perf_counter()
    return run(), time.perf_counter() - began


def main(noises: int, count: int, base: Path) -> None:
    concepts = list(CLASSES[:count])
    pipe = OffsetStableDiffusionPipeline.from_pretrained(base)
    TicketCollection.build(pipe, concepts, noises=2)
    ours = TicketCollection.build(pipe, concepts, noises=1)
    layer, maps = ours.setting.layer, noises * count * (count - 1) // 2

    def collected() -> Tensor:
        return TicketCollection.build(pipe, concepts, noises=noises).scores.flatten(3)

    scores, seconds = timed(collected)
    table = Table(title=f"{noises} noises x {count} concepts, {base.name}, {torch.get_num_threads()} threads")
    for name in ("way", "seconds", "maps / s", "ours is faster by", "largest difference"):
        table.add_column(name, justify="right")
    for batch in (1, 32):
        plain = OffsetStableDiffusionPipeline.from_pretrained(base)
        naively = partial(naive, plain, concepts, noises=noises, layer=layer, batch=batch)
        found, took = timed(naively)
        apart = float((found - scores).abs().nan_to_num().max())
        assert torch.equal(found.isnan(), scores.isnan())
        row = (
            f"naive, batch {batch}",
            f"{took:.1f}",
            f"{maps / took:.0f}",
            f"{took / seconds:.1f}",
            f"{apart:.1e}",
        )
        table.add_row(*row)
    table.add_row("ours", f"{seconds:.1f}", f"{maps / seconds:.0f}", "", "")
    Console().print(table)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        int(given[0]) if given else 64,
        int(given[1]) if len(given) > 1 else 4,
        Path(given[2]) if len(given) > 2 else TINY_BASE,
    )
