"""Training samples whose randomness belongs to the sample: the same draws on 1 GPU, N GPUs and after a
resume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.latents import LatentCache

ORDER, SAMPLE = 0, 1  # what a generator is for: part of its key


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


class TrainingSamples(Dataset):
    """The run's samples in the order they are trained on: sample g is position g % n of epoch g // n.

    Everything random about a sample comes from a generator seeded by (seed, epoch, position), the order of an
    epoch from (seed, epoch); neither depends on the number of processes. Items are dictionaries of
    `latents (C, H, W)` (scaled), `noise (C, H, W)`, `timesteps ()`, `class_ids ()`, `input_ids (L,)`.
    """

    def __init__(
        self,
        cache: LatentCache,
        class_ids: torch.Tensor,
        input_ids: torch.Tensor,
        *,
        no_caption_ids: torch.Tensor,
        total: int,
        seed: int,
        timesteps: TimestepLaw,
        caption_dropout: float,
        sample_posterior: bool = False,
    ) -> None:
        self.cache, self.class_ids, self.input_ids = cache, class_ids, input_ids
        self.no_caption_ids, self.total, self.seed = no_caption_ids, total, seed
        self.timesteps, self.caption_dropout = timesteps, caption_dropout
        self.sample_posterior = sample_posterior
        self._order: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, position = divmod(index, len(self.class_ids))
        row = int(self._order_of(epoch)[position])
        generator = seeded(SAMPLE, self.seed, epoch, position)
        latents = self.cache.mean(row)
        noise = torch.randn(latents.shape, generator=generator)
        timestep = self.timesteps.draw(generator)
        dropped = torch.rand((), generator=generator).item() < self.caption_dropout
        if self.sample_posterior:
            latents = latents + self.cache.stds([row])[0] * torch.randn(latents.shape, generator=generator)
        return {
            "latents": latents,
            "noise": noise,
            "timesteps": torch.tensor(timestep),
            "class_ids": self.class_ids[row],
            "input_ids": self.no_caption_ids if dropped else self.input_ids[row],
        }

    def _order_of(self, epoch: int) -> torch.Tensor:
        if self._order[0] != epoch:
            generator = seeded(ORDER, self.seed, epoch)
            self._order = (epoch, torch.randperm(len(self.class_ids), generator=generator))
        return self._order[1]


def seeded(*key: int) -> torch.Generator:
    """A CPU generator whose state is a hash of the key."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))
