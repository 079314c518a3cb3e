"""The order in which a run sees its pictures: whole global batches of one size, nothing left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

ORDER, SAMPLE = 0, 1  # what a generator is for: part of its key


def seeded(*key: int) -> torch.Generator:
    """A CPU generator whose state is a hash of the key.

    A zero at the end of a key changes nothing, so keys that begin alike must be of one length.
    """
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


def class_draws(
    class_ids: Tensor, class_names: Sequence[str], *, sampling: str, weights: Mapping[str, float]
) -> list[int] | None:
    """How often each class is drawn in an epoch of as many draws as pictures; None: every picture once.

    sampling "natural": by the class's pictures, "balanced": all classes alike; weights multiply either.
    Rounded by largest remainder. Raises ValueError on weights of unknown classes and on a class that is
    left without a draw.
    """
    if unknown := sorted(set(weights) - set(class_names)):
        raise ValueError(f"data.class_weights must name classes of {list(class_names)}, got {unknown}")
    if sampling == "natural" and not weights:
        return None
    counts = class_ids.bincount(minlength=len(class_names)).double()
    shares = counts if sampling == "natural" else torch.ones_like(counts)
    shares = shares * torch.tensor([weights.get(name, 1.0) for name in class_names], dtype=torch.double)
    exact = shares / shares.sum() * len(class_ids)
    draws = exact.floor().long()
    rest = len(class_ids) - int(draws.sum())
    draws[(exact - draws).argsort(descending=True, stable=True)[:rest]] += 1
    for name, drawn in zip(class_names, draws.tolist(), strict=True):
        if not drawn:
            raise ValueError(
                f"data.class_weights must leave every class a draw an epoch, got none for {name!r}"
            )
    return draws.tolist()


def epoch_rows(class_ids: Tensor, draws: Sequence[int] | None, *, seed: int, epoch: int) -> Tensor:
    """The rows (N,) of an epoch, in order: a permutation, or the stated draws from each class.

    A class drawn more often than it has pictures shows all of them before any comes again.
    """
    generator = seeded(ORDER, seed, epoch)
    if draws is None:
        return torch.randperm(len(class_ids), generator=generator)
    rows = []
    for class_id, drawn in enumerate(draws):
        own = (class_ids == class_id).nonzero()[:, 0]
        passes = -(-drawn // len(own))
        shuffled = [own[torch.randperm(len(own), generator=generator)] for _ in range(passes)]
        rows.append(torch.cat(shuffled)[:drawn])
    drawn_rows = torch.cat(rows)
    return drawn_rows[torch.randperm(len(drawn_rows), generator=generator)]


def training_order(
    class_ids: Tensor,
    bucket_ids: Tensor,
    *,
    draws: Sequence[int] | None,
    seed: int,
    steps: int,
    per_step: int,
) -> Tensor:
    """Epoch, position in the epoch and row of every sample of a run, (steps * per_step, 3) int64.

    Every per_step samples are one global batch, of one bucket. A batch is due when its last sample is; what
    an epoch leaves over in a bucket opens that bucket's next batch, so no picture is dropped.
    """
    waiting = [torch.empty(0, 3, dtype=torch.long) for _ in range(int(bucket_ids.max()) + 1)]
    due: list[Tensor] = []
    epoch = 0
    while len(due) < steps:
        rows = epoch_rows(class_ids, draws, seed=seed, epoch=epoch)
        positions = torch.arange(len(rows))
        samples = torch.stack([torch.full_like(rows, epoch), positions, rows], dim=1)
        batches: list[Tensor] = []
        for bucket, left in enumerate(waiting):
            queue = torch.cat([left, samples[bucket_ids[rows] == bucket]])
            *whole, waiting[bucket] = queue.split(per_step) if len(queue) else (queue,)
            if len(waiting[bucket]) == per_step:
                whole, waiting[bucket] = [*whole, waiting[bucket]], queue[:0]
            batches += whole
        due += sorted(batches, key=lambda batch: int(batch[-1, 1]))
        epoch += 1
    return torch.cat(due[:steps])
