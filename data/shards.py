"""Rows of named tensors on disk, found by a key, in files that are written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..pca.tensor_file import write_tensors

Entry = tuple[Path, int]  # shard file and row
Row = Mapping[str, torch.Tensor]

KEYS = "pictures"  # where a shard's header lists the keys of its rows; the first shards held pictures


def recipe_folder(cache_dir: str | os.PathLike, recipe: str) -> Path:
    """The folder of everything made by a recipe: named by its hash, so another recipe never meets it."""
    return Path(cache_dir) / hashlib.sha256(recipe.encode()).hexdigest()[:16]


def write_shards(folder: Path, batches: Iterable[Mapping[str, Row]], *, shard_size: int) -> None:
    """Writes batches of rows (key -> name -> tensor) as they come, shard_size rows or a few more a shard.

    What was computed before an error or an interruption is written too.
    """
    pending: dict[str, Row] = {}
    try:
        for batch in batches:
            pending |= batch
            if len(pending) >= shard_size:
                write_shard(folder, pending)
                pending = {}
    finally:
        if pending:
            write_shard(folder, pending)


def write_shard(folder: Path, rows: Mapping[str, Row]) -> None:
    """Writes rows (key -> name -> CPU tensor; same names, shapes and dtypes in each) as one file in folder.

    Raises ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("a shard must hold a row, got none")
    # The name follows from the content and the index lies in the file's own header: two runs that fill one
    # cache at the same time cannot cross rows, and no second file can disagree with the shard.
    digest = hashlib.sha256(" ".join(rows).encode()).hexdigest()[:12]
    path = folder / f"shard-{digest}.safetensors"
    names = next(iter(rows.values()))
    tensors = {name: torch.stack([row[name] for row in rows.values()]) for name in names}
    write_tensors(tensors, path, {KEYS: json.dumps(list(rows))})


def read_entries(folder: Path) -> dict[str, Entry]:
    """Where each key's row lies in the shards of a folder, which need not exist.

    Raises ValueError naming a shard that cannot be read.
    """
    entries: dict[str, Entry] = {}
    for path in sorted(folder.glob("shard-*.safetensors")):
        try:
            with safe_open(path, framework="pt") as shard:
                keys = json.loads(shard.metadata()[KEYS])
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"cached shard {path} must be readable, got {error}; delete it") from error
        entries.update((key, (path, row)) for row, key in enumerate(keys))
    return entries


class ShardRows:
    """Rows of shards, in the order of entries, read from memory-mapped files when asked for.

    Mapped pages are the system's to take back, so a cache may be larger than the memory; a copy that is sent
    to another process takes none along.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = list(entries)
        self._mapped: dict[Path, dict[str, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict:
        return {"entries": self.entries, "_mapped": {}}

    def gather(self, name: str, places: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """The tensors of that name at places (one or more), (B, ...) as they were written; a copy.

        Raises ValueError if there is no tensor of that name, or the rows differ in shape.
        """
        rows = [self._row(name, place) for place in torch.as_tensor(places).tolist()]
        shapes = sorted({tuple(row.shape) for row in rows})
        if len(shapes) > 1:
            raise ValueError(f"rows read together must be of one shape, got {shapes}")
        return torch.stack(rows)

    def _row(self, name: str, place: int) -> torch.Tensor:
        path, row = self.entries[place]
        if path not in self._mapped:
            with safe_open(path, framework="pt") as shard:
                self._mapped[path] = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
        tensors = self._mapped[path]
        if name not in tensors:
            raise ValueError(f"tensors of {path} must be one of {sorted(tensors)}, got {name!r}")
        return tensors[name][row]
