"""The table of scores: which are missing, who computes them, and where they belong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any, Protocol

import torch
from torch import Tensor

from .collect import Part, Scores
from .setting import pair_texts


class SharesWork(Protocol):
    """Work over several processes, each item done by one and all results on each, in the items' order."""

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """The function's results."""
        ...


def complete(
    table: Tensor,
    compute: Scores,
    *,
    concepts: Sequence[str],
    seeds: Sequence[int],
    processes: SharesWork | None = None,
) -> None:
    """Computes the scores that a table of these concepts and seeds lacks, and writes them into it."""
    setting = compute.setting
    parts: list[Part] = []
    groups: list[frozenset[tuple[int, int]]] = []
    for pairs, missing in missing_pairs(table, seeds):
        named = [(concepts[i], concepts[j]) for i, j in pairs]
        texts = pair_texts(named, prompt=setting.prompt, both_orders=setting.both_orders)
        own = compute.parts(missing, texts)
        parts += own
        groups += [frozenset(pairs)] * len(own)
    results = [compute(part) for part in parts] if processes is None else processes.map(compute, parts)
    for group, part, scores in zip(groups, parts, results, strict=True):
        fill(table, group, part, scores, concepts=concepts, seeds=seeds, orders=setting.orders)


def enlarged(scores: Tensor, concepts: Sequence[int], noises: Sequence[int], room: tuple[int, int]) -> Tensor:
    """Scores (C, C, N, rows, columns) in a table for `room` concepts and noises, at these places."""
    table = torch.full((room[0], room[0], room[1], *scores.shape[3:]), torch.nan)
    if scores.numel():
        places = [torch.tensor(list(x)) for x in (concepts, concepts, noises)]
        i, j, n = torch.meshgrid(*places, indexing="ij")
        table[i, j, n] = scores
    return table


def missing_pairs(scores: Tensor, seeds: Sequence[int]) -> list[tuple[list[tuple[int, int]], list[int]]]:
    """Pairs of concepts, by index, with the seeds for which these pairs, and no others, are not there."""
    first, second = torch.triu_indices(len(scores), len(scores), offset=1)
    unknown = scores[first, second, :, 0, 0].isnan()
    groups: dict[bytes, list[int]] = {}
    for column in range(len(seeds)):
        groups.setdefault(unknown[:, column].numpy().tobytes(), []).append(column)
    found = []
    for columns in groups.values():
        rows = unknown[:, columns[0]]
        pairs = list(zip(first[rows].tolist(), second[rows].tolist(), strict=True))
        if pairs:
            found.append((pairs, [seeds[column] for column in columns]))
    return found


def fill(
    table: Tensor,
    pairs: frozenset[tuple[int, int]],
    part: Part,
    scores: Tensor,
    *,
    concepts: Sequence[str],
    seeds: Sequence[int],
    orders: int,
) -> None:
    """Writes a part's scores into a table of these concepts and seeds, for these pairs.

    orders: how many texts score a pair, whose mean counts.
    """
    own, texts = part
    rows = [seeds.index(seed) for seed in own]
    for column, about in enumerate(texts.values()):
        places = [concepts.index(concept) for concept in about]
        for a, b in permutations(range(len(about)), 2):
            i, j = places[a], places[b]
            if (min(i, j), max(i, j)) in pairs:
                table[i, j, rows] = table[i, j, rows].nan_to_num(nan=0.0) + scores[:, column, a] / orders
