"""Text embeddings of a catalogue's captions, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.latents import weights_hash
from ..data.processes import ALONE, Processes
from ..data.shards import ShardRows, read_entries, recipe_folder, write_shards
from ..inference.text import pool, text_encoders, tokenize
from .text import TokenIds, embed

LARGEST_SHARE = 0.5  # of the free disk that embeddings may take without being asked for


class CachedText:
    """Captions as embeddings; row None is the empty caption."""

    def __init__(self, rows: ShardRows, places: Sequence[int], *, names: Sequence[str]) -> None:
        self._rows, self._places, self._names = rows, list(places), tuple(names)

    def __getitem__(self, row: int | None) -> dict[str, Tensor]:
        place = self._places[-1 if row is None else row]
        return {name: self._rows.gather(name, [place])[0] for name in self._names}


def embeddings_size(pipeline: Any, captions: Sequence[str], *, dtype: torch.dtype) -> int:
    """Bytes that the embeddings of the distinct captions will take, empty caption included."""
    encoders = text_encoders(pipeline)
    length = pipeline.tokenizer.model_max_length
    width = sum(encoder.config.hidden_size for encoder in encoders)
    pooled = encoders[-1].config.projection_dim if len(encoders) > 1 else 0
    return len({*captions, ""}) * (length * width + pooled) * dtype.itemsize


def should_cache(wanted: bool | None, *, frozen: bool, size: int, cache_dir: Path) -> bool:
    """Whether embeddings are cached: as configured, else if they stay the same and fit.

    Raises ValueError if they are to be cached though the encoders are trained.
    """
    if wanted and not frozen:
        raise ValueError("train.cache_text must be false while text encoders are trained, got true")
    if wanted is not None:
        return wanted
    place = next(folder for folder in (cache_dir, *cache_dir.absolute().parents) if folder.exists())
    return frozen and size <= LARGEST_SHARE * shutil.disk_usage(place).free


class PooledText:
    """One pooled embedding (E,) a caption, read from disk by rows or slices of rows."""

    def __init__(self, rows: ShardRows, places: Sequence[int]) -> None:
        self._rows, self._places = rows, torch.tensor(places)
        self.shape = (len(places), *rows.gather("pooled", [0]).shape[1:])

    def __len__(self) -> int:
        return len(self._places)

    def at(self, rows: Sequence[int]) -> PooledText:
        """The embeddings of these rows, in this order."""
        return PooledText(self._rows, self._places[list(rows)].tolist())

    def __getitem__(self, rows: int | slice | Sequence[int]) -> Tensor:
        places = self._places[rows]
        found = self._rows.gather("pooled", places.reshape(-1))
        return found if places.ndim else found[0]


def cache_text(
    pipeline: Any,
    captions: Sequence[str],
    *,
    cache_dir: Path,
    batch_size: int = 64,
    processes: Processes = ALONE,
) -> CachedText:
    """Embeddings of captions as the encoders give them, in their dtype; found again by the hash of encoders,
    tokens and dtype. The distinct captions are divided over the processes."""
    encoders = text_encoders(pipeline)

    def embedded(ids: Tensor) -> dict[str, Tensor | None]:
        return embed(encoders, ids.to(encoders[0].device))._asdict()

    places, rows = _cached(
        pipeline,
        [*captions, ""],
        embedded,
        recipe=["text", *(weights_hash(encoder) for encoder in encoders), str(encoders[0].dtype)],
        cache_dir=cache_dir,
        batch_size=batch_size,
        processes=processes,
    )
    names = ("hidden", "pooled") if len(encoders) > 1 else ("hidden",)
    return CachedText(rows, places, names=names)


def cache_pooled_text(
    pipeline: Any, captions: Sequence[str], *, cache_dir: Path, processes: Processes = ALONE
) -> PooledText:
    """What a text-conditioned start distribution reads of captions; kept as `cache_text` keeps it."""
    encoder = text_encoders(pipeline)[-1]
    places, rows = _cached(
        pipeline,
        captions,
        lambda ids: {"pooled": pool(encoder, ids[:, -1].to(encoder.device))},
        recipe=["pooled text", weights_hash(encoder), str(encoder.dtype)],
        cache_dir=cache_dir,
        processes=processes,
    )
    return PooledText(rows, places)


@torch.no_grad()
def _cached(
    pipeline: Any,
    captions: Sequence[str],
    embedded: Callable[[Tensor], dict[str, Tensor | None]],
    *,
    recipe: Sequence[str],
    cache_dir: Path,
    batch_size: int = 64,
    processes: Processes,
) -> tuple[list[int], ShardRows]:
    """The row of each caption, and the rows, one a distinct caption; those not on disk yet are computed.

    Raises ValueError if what another process computed is not in the folder.
    """
    distinct = sorted(set(captions))
    tokens = tokenize(pipeline, distinct)
    keys = [hashlib.sha256(ids.numpy().tobytes()).hexdigest() for ids in tokens]
    folder = recipe_folder(cache_dir, json.dumps(list(recipe)))
    entries = read_entries(folder)
    # the main process's word: another may have looked later, when some of them were written already
    missing: list[int] = processes.gather([[i for i, key in enumerate(keys) if key not in entries]])[0]

    def batches(own: Sequence[int]) -> Iterator[dict[str, dict[str, Tensor]]]:
        for first in range(0, len(own), batch_size):
            some = own[first : first + batch_size]
            kept = {name: x.cpu() for name, x in embedded(tokens[some]).items() if x is not None}
            yield {keys[i]: {name: tensor[j] for name, tensor in kept.items()} for j, i in enumerate(some)}

    if missing:
        write_shards(folder, batches(processes.share(missing)), shard_size=256)
        processes.wait()
        entries = read_entries(folder)
        if lost := [i for i, key in enumerate(keys) if key not in entries]:
            raise ValueError(
                f"embeddings of caption {distinct[lost[0]]!r} must be in {folder} once encoded, got none: "
                "all processes must see the same cache folder"
            )
    place = {caption: i for i, caption in enumerate(distinct)}
    return [place[caption] for caption in captions], ShardRows(entries[key] for key in keys)


def texts_of(
    pipeline: Any, captions: Sequence[str], *, cached: bool, cache_dir: Path, processes: Processes = ALONE
) -> TokenIds | CachedText:
    """What the denoiser reads of captions: cached embeddings, or token ids to be encoded in every step."""
    if cached:
        return cache_text(pipeline, captions, cache_dir=cache_dir, processes=processes)
    return TokenIds(pipeline, captions)
