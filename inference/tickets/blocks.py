"""Lottery tickets: square blocks of initial noise, cut out, told winners from the rest, and put elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def seeded_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Noise (N, *shape) float32 on the CPU, each picture from its own seed."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def cut(latents: Tensor, block: int) -> Tensor:
    """Latents (N, C, H, W) as blocks (N, H / block, W / block, C, block, block).

    Raises ValueError on sides that are no multiples of block.
    """
    _, _, height, width = latents.shape
    if height % block or width % block:
        raise ValueError(f"latents must have sides that are multiples of {block}, got {height} x {width}")
    return latents.unflatten(3, (-1, block)).unflatten(2, (-1, block)).permute(0, 2, 4, 1, 3, 5)


def paste(blocks: Tensor) -> Tensor:
    """Blocks (N, rows, columns, C, b, b) as latents (N, C, rows * b, columns * b); undoes `cut`."""
    return blocks.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


@dataclass(frozen=True)
class Tickets:
    """Blocks of the seeded noises, in parallel tensors (n,): which noise, row and column, its score, and
    whether it fell back, that is, was taken although it fell short of a threshold."""

    noise: Tensor
    row: Tensor
    column: Tensor
    score: Tensor
    fell_back: Tensor

    def __len__(self) -> int:
        return len(self.noise)


def averages(scores: Tensor) -> Tensor:
    """avg_i (concepts, noises, rows, columns): mean over j of S_i(j) as far as they are known.

    scores: (concepts, concepts, noises, rows, columns), nan where unknown, as on the diagonal.
    """
    return scores.nanmean(dim=1)


def above(scores: Tensor, members: Sequence[int], t_obj: float) -> Tensor:
    """Which blocks S_i(j) > t_obj holds for, for all other members j: (len(members), noises, rows, columns).

    Of a single member avg_i > t_obj. Unknown scores are not above. scores: as in `averages`.
    Source: METHODS 4; eq. 3 and 4.
    """
    if len(members) == 1:
        return averages(scores[members]) > t_obj
    return _with_all_others(scores[members][:, members] > t_obj, dim=1)


def below(scores: Tensor, members: Sequence[int], t_neg: float) -> Tensor:
    """Which blocks S_j(i) < t_neg holds for, for all other members j; shapes as in `above`."""
    return _with_all_others(scores[members][:, members] < t_neg, dim=0)


def _with_all_others(pairs: Tensor, *, dim: int) -> Tensor:
    diagonal = range(len(pairs))
    pairs[diagonal, diagonal] = True
    return pairs.all(dim=dim)


def winning(scores: Tensor, members: Sequence[int], *, t_obj: float, t_neg: float | None = None) -> Tensor:
    """Which blocks win for each of the members: above t_obj, below t_neg if given, for it alone."""
    wins = above(scores, members, t_obj)
    wins &= wins.sum(dim=0) < 2
    return wins if t_neg is None else wins & below(scores, members, t_neg)


def worst_score(scores: Tensor, member: int, members: Sequence[int]) -> Tensor:
    """What a threshold is held against, (noises, rows, columns): min over j of S_i(j), or avg_i alone.

    -inf where a score is unknown.
    """
    others = [j for j in members if j != member]
    worst = scores[member, others].amin(dim=0) if others else averages(scores[[member]])[0]
    return worst.nan_to_num(nan=-torch.inf)


def choose(wins: Tensor, ranking: Tensor, allowed: Tensor, *, at_least: int) -> Tickets:
    """The winning blocks; if some, but fewer than at_least, also the best allowed others by ranking.

    wins, allowed: (noises, rows, columns) bool; ranking: the same shape, -inf for what cannot be taken.
    """
    chosen = wins.flatten().nonzero()[:, 0]
    missing = at_least - len(chosen)
    fell_back = chosen[:0]
    if 0 < missing < at_least:
        rest = ranking.masked_fill(wins | ~allowed, -torch.inf).flatten()
        best = rest.topk(min(missing, len(rest)))
        fell_back = best.indices[best.values > -torch.inf]
    places = torch.cat([chosen, fell_back])
    noise, row, column = torch.unravel_index(places, wins.shape)
    late = torch.arange(len(places)) >= len(chosen)
    return Tickets(noise, row, column, ranking.flatten()[places], late)
