"""Training samples whose randomness belongs to the sample: the same draws on 1 GPU, N GPUs and after a
resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.latents import LatentCache
from .order import SAMPLE, seeded


@dataclass(frozen=True)
class TimestepLaw:
    """Timesteps uniform over [0, T), or with a stated share of them in the offset range [offset_from, T)."""

    num_train_timesteps: int
    offset_from: int
    emphasis: float | None = None

    def draw(self, generator: torch.Generator) -> int:
        """One timestep."""
        low, high = 0, self.num_train_timesteps
        if self.emphasis is not None and self.offset_from < self.num_train_timesteps:
            inside = torch.rand((), generator=generator).item() < self.emphasis
            low, high = (self.offset_from, high) if inside else (0, self.offset_from)
        return int(torch.randint(low, high, (), generator=generator))


class Texts(Protocol):
    """What the denoiser reads of each caption, by row; None is the empty caption."""

    def __getitem__(self, row: int | None) -> dict[str, Tensor]: ...


class Rows(Protocol):
    """One tensor a row."""

    def __getitem__(self, row: int) -> Tensor: ...


class TrainingSamples(Dataset):
    """The run's samples in the order they are trained on.

    order: (N, 3) of epoch, position in the epoch's order and row. Everything random about a sample comes
    from a generator seeded by (seed, epoch, position), whatever the number of processes. Items are
    dictionaries of `latents (C, H, W)` (scaled), `noise (C, H, W)`, `timesteps ()`, `class_ids ()`,
    `dropped ()`, the caption's tokens or embeddings and, where they are given, `condition (3, h, w)` and
    `text_embeds (E,)`.
    """

    def __init__(
        self,
        cache: LatentCache,
        class_ids: Tensor,
        texts: Texts,
        *,
        order: Tensor,
        seed: int,
        timesteps: TimestepLaw,
        caption_dropout: float,
        sample_posterior: bool = False,
        condition: Callable[[int], Tensor] | None = None,
        text_embeds: Rows | None = None,
    ) -> None:
        self.cache, self.class_ids, self.texts = cache, class_ids, texts
        self.order, self.seed = order, seed
        self.timesteps, self.caption_dropout = timesteps, caption_dropout
        self.sample_posterior, self.condition = sample_posterior, condition
        self.text_embeds = text_embeds

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        epoch, position, row = self.order[index].tolist()
        generator = seeded(SAMPLE, self.seed, epoch, position)
        latents = self.cache.mean(row)
        noise = torch.randn(latents.shape, generator=generator)
        timestep = self.timesteps.draw(generator)
        dropped = torch.rand((), generator=generator).item() < self.caption_dropout
        if self.sample_posterior:
            latents = latents + self.cache.stds([row])[0] * torch.randn(latents.shape, generator=generator)
        item = {
            "latents": latents,
            "noise": noise,
            "timesteps": torch.tensor(timestep),
            "class_ids": self.class_ids[row],
            "dropped": torch.tensor(dropped),
            **self.texts[None if dropped else row],
        }
        if self.condition is not None:
            item["condition"] = self.condition(row)
        if self.text_embeds is not None:
            # Of the caption even where it is dropped: both branches of guidance start from the same latents.
            item["text_embeds"] = self.text_embeds[row]
        return item
