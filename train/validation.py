"""The loss on held-out pictures, at noises and timesteps that never change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from .draw import round_robin
from .loop import loss_function
from .order import seeded
from .part import Part
from .samples import Texts
from .training import Training

VALIDATION, SPREAD = 2, 3  # what a generator is for, beside order.ORDER and order.SAMPLE


@dataclass(frozen=True)
class Validation:
    """Each of some held-out pictures once outside the offset range and once inside it.

    batches: (number, row, timestep) of samples; all pictures of a batch are of one size.
    """

    part: Part
    texts: Texts
    batches: list[list[tuple[int, int, int]]]
    offset_from: int
    num_train_timesteps: int

    def batch(self, number: int) -> dict[str, Tensor]:
        """A batch as training sees one, the noise of each sample drawn from its number."""
        numbers, rows, timesteps = (list(column) for column in zip(*self.batches[number], strict=True))
        latents = self.part.cache.means(rows)
        noise = [torch.randn(latents.shape[1:], generator=seeded(VALIDATION, n)) for n in numbers]
        batch = {
            "latents": latents,
            "noise": torch.stack(noise),
            "timesteps": torch.tensor(timesteps),
            "class_ids": self.part.catalogue.class_ids[rows],
            "dropped": torch.zeros(len(rows), dtype=torch.bool),
            **default_collate([self.texts[row] for row in rows]),
        }
        if self.part.condition is not None:
            batch["condition"] = torch.stack([self.part.condition(row) for row in rows])
        if self.part.text_embeds is not None:
            batch["text_embeds"] = self.part.text_embeds[rows]
        return batch

    @torch.no_grad()
    def losses(self, training: Training, start_distribution: Any) -> dict[str, float]:
        """`held_out_loss`, its parts `held_out_offset_range` and `held_out_elsewhere`, and each class's.

        The parts are weighted by the timesteps they stand for. Averaged weights, no caption dropped. All
        processes call it; each takes its share of the batches.
        """
        accelerator, names = training.accelerator, self.part.catalogue.class_names
        sums = torch.zeros(2, 2, len(names), dtype=torch.float64)  # sum and count, outside and inside, class
        own = range(accelerator.process_index, len(self.batches), accelerator.num_processes)
        with training.evaluation() as networks, accelerator.autocast():
            loss_of = loss_function(
                networks.denoiser, networks.pipeline, start_distribution, device=accelerator.device
            )
            for batch in map(self.batch, own):
                moved = {key: value.to(accelerator.device) for key, value in batch.items()}
                per_sample = loss_of(moved).per_sample.cpu().double()
                inside = (batch["timesteps"] >= self.offset_from).long()
                where = (inside, batch["class_ids"])
                sums[0].index_put_(where, per_sample, accumulate=True)
                sums[1].index_put_(where, torch.ones_like(per_sample), accumulate=True)
        # float32 on the wire: not every device has float64
        sums = accelerator.reduce(sums.float().to(accelerator.device), reduction="sum").cpu().double()
        return self._means(sums, names)

    def _means(self, sums: Tensor, names: list[str]) -> dict[str, float]:
        share = 1 - self.offset_from / self.num_train_timesteps
        weights = torch.tensor([1 - share, share], dtype=torch.float64)
        elsewhere, inside = (sums[0].sum(1) / sums[1].sum(1).clamp(min=1)).tolist()
        values = {"held_out_loss": float(weights @ torch.tensor([elsewhere, inside], dtype=torch.float64))}
        if share:
            values["held_out_offset_range"] = inside
        values["held_out_elsewhere"] = elsewhere
        by_class = (weights[:, None] * sums[0] / sums[1].clamp(min=1)).sum(0).tolist()
        shown = sums[1].sum(0).tolist()
        return values | {
            f"held_out_class/{name}": value
            for name, value, count in zip(names, by_class, shown, strict=True)
            if count
        }


def fixed_validation(
    part: Part, texts: Texts, *, start_distribution: Any, pictures: int, batch_size: int
) -> Validation:
    """The same validation for every run on the same held-out part: at most `pictures`, class by class."""
    total, low = start_distribution.config["num_train_timesteps"], start_distribution.offset_from
    rows = round_robin(part.catalogue, pictures)
    generator = seeded(SPREAD)
    samples = list(zip(rows, spread(len(rows), 0, low, generator).tolist(), strict=True))
    if low < total:
        samples += list(zip(rows, spread(len(rows), low, total, generator).tolist(), strict=True))
    batches: list[list[tuple[int, int, int]]] = []
    for places in part.by_size([row for row, _ in samples], range(len(samples))).values():
        for first in range(0, len(places), batch_size):
            batches.append([(i, *samples[i]) for i in places[first : first + batch_size]])
    return Validation(part, texts, batches, low, total)


def spread(count: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    """`count` timesteps in [low, high), one in each of as many equal parts, in random order."""
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (
        (low + places[torch.randperm(count, generator=generator)] * (high - low)).long().clamp(max=high - 1)
    )
