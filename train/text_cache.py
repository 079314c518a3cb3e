"""Text embeddings of a catalogue's captions, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.latents import weights_hash
from ..data.processes import ALONE, Processes
from ..data.shards import ShardRows, read_entries, recipe_folder, write_shards
from .text import TokenIds, embed, text_encoders, tokenize

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


@torch.no_grad()
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
    distinct = sorted({*captions, ""})
    tokens = tokenize(pipeline, distinct)
    keys = {
        caption: hashlib.sha256(ids.numpy().tobytes()).hexdigest()
        for caption, ids in zip(distinct, tokens, strict=True)
    }
    recipe = json.dumps(["text", *(weights_hash(encoder) for encoder in encoders), str(encoders[0].dtype)])
    folder = recipe_folder(cache_dir, recipe)
    entries = read_entries(folder)
    missing = [i for i, caption in enumerate(distinct) if keys[caption] not in entries]
    processes.wait()  # all have looked before any writes
    own = processes.share(missing)

    def batches() -> Any:
        for first in range(0, len(own), batch_size):
            some = own[first : first + batch_size]
            embeds = embed(encoders, tokens[some].to(encoders[0].device))
            columns = {"hidden": embeds.hidden, "pooled": embeds.pooled}
            kept = {name: tensor.cpu() for name, tensor in columns.items() if tensor is not None}
            yield {
                keys[distinct[i]]: {name: tensor[j] for name, tensor in kept.items()}
                for j, i in enumerate(some)
            }

    write_shards(folder, batches(), shard_size=256)
    processes.wait()
    entries = read_entries(folder)
    rows = ShardRows(entries[keys[caption]] for caption in distinct)
    place = {caption: i for i, caption in enumerate(distinct)}
    names = ("hidden", "pooled") if len(encoders) > 1 else ("hidden",)
    return CachedText(rows, [place[caption] for caption in (*captions, "")], names=names)


def texts_of(
    pipeline: Any, captions: Sequence[str], *, cached: bool, cache_dir: Path, processes: Processes = ALONE
) -> TokenIds | CachedText:
    """What the denoiser reads of captions: cached embeddings, or token ids to be encoded in every step."""
    if cached:
        return cache_text(pipeline, captions, cache_dir=cache_dir, processes=processes)
    return TokenIds(pipeline, captions)
