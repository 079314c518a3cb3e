"""Pictures -> scaled latents, encoded once and kept on disk under the hash of what went into them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .buckets import Buckets
from .catalogue import Catalogue
from .processes import ALONE, Processes
from .progress import picture_bar
from .shards import Entry, ShardRows, read_entries, recipe_folder, write_shards
from .transform import ImageTransform

Shape = tuple[int, int, int]
Batch = dict[str, dict[str, torch.Tensor]]  # picture hash -> mean and std

BATCH_PIXELS = 2**21  # encoded at a time: 8 pictures of 512 x 512, some 4 GB of float32 activations


@torch.no_grad()
def encode_latents(pixels: torch.Tensor, vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the VAE posterior, as scaled latents.

    pixels: (B, 3, H, W) in [-1, 1]; vae: diffusers' AutoencoderKL or its like. Returns two (B, C, h, w)
    float32 tensors on the VAE's device: (mean - shift_factor) * scaling_factor and std * scaling_factor.
    """
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    shift = vae.config.get("shift_factor") or 0.0
    scale = vae.config.scaling_factor
    return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale


def weights_hash(model: Any) -> str:
    """sha256 over a model's config (diffusers' or transformers') and its weights as float32."""
    config = model.config.to_dict() if hasattr(model.config, "to_dict") else model.config
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} ".encode())
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def cache_latents(
    catalogue: Catalogue,
    vae: Any,
    transform: ImageTransform,
    *,
    cache_dir: str | os.PathLike,
    batch_size: int | None = None,
    shard_size: int = 256,
    device: str | torch.device = "cpu",
    progress: bool = True,
    processes: Processes = ALONE,
    buckets: Buckets | None = None,
) -> "LatentCache":
    """The latents of a catalogue, of which only those not cached yet are encoded.

    A latent is found by the hashes of transform, VAE and picture, so a change to any of them never meets a
    stale latent, and equal pictures are encoded once. Moves the VAE to device. Shards of shard_size pictures
    are written as they are done: an interrupted run keeps them. batch_size: None is what fits at the
    pictures' size, 16 at most. processes: those that share hashing and encoding; all must call this, and get
    the same cache. buckets: each picture is encoded at its bucket's size, not the transform's.
    Raises ValueError naming the picture if it cannot be read or its latents are not finite, if there is not
    one bucket a picture, and if what another process encoded is not in the folder.
    """
    if buckets is not None and len(buckets) != len(catalogue):
        raise ValueError(f"buckets must be of {len(catalogue)} pictures, got {len(buckets)}")
    sizes = [(transform.height, transform.width)] if buckets is None else buckets.sizes
    transforms = [replace(transform, height=height, width=width) for height, width in sizes]
    weights = weights_hash(vae)
    recipes = [f"{weights} {json.dumps(each.to_dict(), sort_keys=True)}" for each in transforms]
    work = _Work(
        catalogue,
        _hash_pictures(catalogue, processes=processes, shown=progress and processes.is_main),
        [0] * len(catalogue) if buckets is None else buckets.bucket_ids.tolist(),
        transforms,
        [recipe_folder(cache_dir, recipe) for recipe in recipes],
    )
    found = work.entries()
    # The main process's word: another may have looked later, when some of them were written already.
    missing: list[int] = processes.gather([work.missing(found)])[0]
    if missing:
        share = processes.share(missing)
        with picture_bar("encoding pictures", len(share), shown=progress and processes.is_main) as advance:
            encode = partial(_encode, work=work, vae=vae.to(device), batch_size=batch_size, advance=advance)
            shares = [missing[index :: processes.count] for index in range(processes.count)]
            processes.map(partial(encode, shard_size=shard_size), shares)
        processes.wait()
        found = work.entries()
        if lost := work.missing(found):
            folder = work.folders[work.bucket_ids[lost[0]]]
            raise ValueError(
                f"latents of picture {catalogue.origins[lost[0]]} must be in {folder} once encoded, "
                "got none: all processes must see the same cache folder"
            )
    shapes = [_latent_shape(vae, each) for each in transforms]
    return LatentCache(
        work.keys,
        [entry for entry in found if entry is not None],
        latent_shape=_latent_shape(vae, transform),
        shapes=[shapes[bucket] for bucket in work.bucket_ids],
    )


def _latent_shape(vae: Any, transform: ImageTransform) -> Shape:
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return vae.config.latent_channels, transform.height // factor, transform.width // factor


def _hash_pictures(catalogue: Catalogue, *, processes: Processes, shown: bool) -> list[str]:
    indices = range(len(catalogue))
    with picture_bar("hashing pictures", len(processes.share(indices)), shown=shown) as advance:

        def fingerprint(index: int) -> str:
            advance(1)
            return catalogue.fingerprint(index)

        return processes.map(fingerprint, indices)


@dataclass(frozen=True)
class _Work:
    """What the cache is to hold: each picture's hash and bucket, each bucket's transform and folder."""

    catalogue: Catalogue
    keys: list[str]
    bucket_ids: list[int]
    transforms: list[ImageTransform]
    folders: list[Path]

    def entries(self) -> list[Entry | None]:
        """Where each picture's latents lie, None if nowhere."""
        there = [read_entries(folder) for folder in self.folders]
        return [there[bucket].get(key) for bucket, key in zip(self.bucket_ids, self.keys, strict=True)]

    def missing(self, entries: Sequence[Entry | None]) -> list[int]:
        """Pictures to encode, bucket by bucket; of equal ones the first."""
        first: dict[tuple[int, str], int] = {}
        for index, entry in enumerate(entries):
            if entry is None:
                first.setdefault((self.bucket_ids[index], self.keys[index]), index)
        return sorted(first.values(), key=self.bucket_ids.__getitem__)


def _encode(
    indices: Sequence[int],
    *,
    work: _Work,
    vae: Any,
    batch_size: int | None,
    shard_size: int,
    advance: Callable[[int], None],
) -> None:
    for bucket, (transform, folder) in enumerate(zip(work.transforms, work.folders, strict=True)):
        own = [index for index in indices if work.bucket_ids[index] == bucket]
        fitting = max(1, min(16, BATCH_PIXELS // (transform.height * transform.width)))
        batches = _encoded_batches(own, work, vae, transform, batch_size=batch_size or fitting)
        write_shards(folder, _counted(batches, advance), shard_size=shard_size)


def _counted(batches: Iterator[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
    for batch in batches:
        advance(len(batch))
        yield batch


def _encoded_batches(
    indices: Sequence[int], work: _Work, vae: Any, transform: ImageTransform, *, batch_size: int
) -> Iterator[Batch]:
    def pixels_of(index: int) -> torch.Tensor:
        return transform(work.catalogue.image(index))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            pixels = torch.stack(list(pool.map(pixels_of, batch)))
            mean, std = (latents.cpu() for latents in encode_latents(pixels, vae))
            finite = (mean.isfinite() & std.isfinite()).flatten(1).all(dim=1)
            for index, usable in zip(batch, finite.tolist(), strict=True):
                if not usable:
                    name = work.catalogue.origins[index]
                    raise ValueError(
                        f"latents of picture {name} must be finite, got NaN or inf ({vae.dtype} VAE)"
                    )
            yield {work.keys[i]: {"mean": m, "std": s} for i, m, s in zip(batch, mean, std, strict=True)}


class LatentCache:
    """Scaled latents of a catalogue's pictures, in its order, read from memory-mapped files.

    shapes: of each picture's latents, where they differ by bucket. Attributes: `latent_shape` (C, h, w), at
    the transform's own size; `content_hash`, equal for equal pictures, transform, buckets and VAE.
    """

    def __init__(
        self,
        keys: Sequence[str],
        entries: Sequence[Entry],
        *,
        latent_shape: Shape,
        shapes: Sequence[Shape] | None = None,
    ) -> None:
        self.latent_shape = latent_shape
        self._shapes = [latent_shape] * len(entries) if shapes is None else list(shapes)
        homes = [path.parent.name for path, _ in entries]
        folders = sorted(set(homes))
        which = [str(folders.index(home)) for home in homes] if len(folders) > 1 else []
        self.content_hash = hashlib.sha256(" ".join([*folders, *keys, *which]).encode()).hexdigest()
        self._rows = ShardRows(entries)

    def __len__(self) -> int:
        return len(self._rows)

    def shape_of(self, index: int) -> Shape:
        """(C, h, w) of one picture's latents."""
        return self._shapes[index]

    def mean(self, index: int) -> torch.Tensor:
        """Scaled posterior mean of one picture, (C, h, w) float32."""
        return self.means([index])[0]

    def means(self, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Scaled posterior means of pictures of one shape, (B, C, h, w) float32. Raises ValueError on two."""
        return self._gather("mean", indices)

    def stds(self, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Scaled posterior standard deviations, (B, C, h, w) float32. Raises ValueError as `means` does."""
        return self._gather("std", indices)

    def _gather(self, name: str, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        rows = torch.as_tensor(indices).tolist()
        shapes = sorted({self._shapes[row] for row in rows})
        if len(shapes) > 1:
            raise ValueError(f"pictures read together must be of one bucket, got latents of {shapes}")
        return self._rows.gather(name, rows) if rows else torch.empty((0, *self.latent_shape))
