"""Pictures -> scaled latents, encoded once and kept on disk under the hash of what went into them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .catalogue import Catalogue
from .progress import picture_bar
from .transform import ImageTransform

Entry = tuple[Path, int]  # shard file and row
Latents = dict[str, tuple[torch.Tensor, torch.Tensor]]  # picture hash -> mean and std


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
    """sha256 over a VAE's config and its weights as float32."""
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
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
    batch_size: int = 16,
    shard_size: int = 256,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> "LatentCache":
    """The latents of a catalogue, of which only those not cached yet are encoded.

    A latent is found by the hashes of transform, VAE and picture, so a change to any of them never meets a
    stale latent, and equal pictures are encoded once. Moves the VAE to device. Shards of shard_size pictures
    are written as they are done: an interrupted run keeps them.
    Raises ValueError naming the picture if it cannot be read or its latents are not finite.
    """
    recipe = f"{weights_hash(vae)} {json.dumps(transform.to_dict(), sort_keys=True)}"
    folder = Path(cache_dir) / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    with picture_bar("hashing pictures", len(catalogue), shown=progress) as advance:
        keys = []
        for index in range(len(catalogue)):
            keys.append(catalogue.fingerprint(index))
            advance(1)
    entries = _read_entries(folder)
    missing: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key not in entries:
            missing.setdefault(key, index)
    if missing:
        batches = _encoded_batches(missing, catalogue, vae.to(device), transform, batch_size=batch_size)
        with picture_bar("encoding pictures", len(missing), shown=progress) as advance:
            _write_shards(batches, folder=folder, shard_size=shard_size, advance=advance)
        entries = _read_entries(folder)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    shape = (vae.config.latent_channels, transform.height // factor, transform.width // factor)
    return LatentCache(keys, [entries[key] for key in keys], latent_shape=shape)


def _encoded_batches(
    missing: dict[str, int],
    catalogue: Catalogue,
    vae: Any,
    transform: ImageTransform,
    *,
    batch_size: int,
) -> Iterator[Latents]:
    keys = list(missing)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(keys), batch_size):
            batch = keys[start : start + batch_size]
            pixels = torch.stack(list(pool.map(lambda key: transform(catalogue.image(missing[key])), batch)))
            mean, std = (latents.cpu() for latents in encode_latents(pixels, vae))
            finite = (mean.isfinite() & std.isfinite()).flatten(1).all(dim=1)
            for key, usable in zip(batch, finite.tolist(), strict=True):
                if not usable:
                    name = catalogue.origins[missing[key]]
                    raise ValueError(
                        f"latents of picture {name} must be finite, got NaN or inf ({vae.dtype} VAE)"
                    )
            yield dict(zip(batch, zip(mean, std, strict=True), strict=True))


def _write_shards(
    batches: Iterator[Latents], *, folder: Path, shard_size: int, advance: Callable[[int], None]
) -> None:
    pending: Latents = {}
    try:
        for batch in batches:
            pending |= batch
            advance(len(batch))
            if len(pending) >= shard_size:
                _write_shard(pending, folder)
                pending = {}
    finally:  # an interrupted run keeps what it has encoded
        if pending:
            _write_shard(pending, folder)


def _write_shard(latents: Latents, folder: Path) -> None:
    # The name follows from the content and the index lies in the file's own header: two runs that fill one
    # cache at the same time cannot cross rows, and no second file can disagree with the shard.
    name = hashlib.sha256(" ".join(latents).encode()).hexdigest()[:12]
    path = folder / f"shard-{name}.safetensors"
    beside = folder / f".{path.name}.{os.getpid()}.tmp"
    means, stds = (torch.stack(part) for part in zip(*latents.values(), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        save_file({"mean": means, "std": stds}, beside, metadata={"pictures": json.dumps(list(latents))})
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _read_entries(folder: Path) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for path in sorted(folder.glob("shard-*.safetensors")):
        try:
            with safe_open(path, framework="pt") as shard:
                keys = json.loads(shard.metadata()["pictures"])
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"latent shard {path} must be readable, got {error}; delete it") from error
        entries.update((key, (path, row)) for row, key in enumerate(keys))
    return entries


class LatentCache:
    """Scaled latents of a catalogue's pictures, in its order, read from memory-mapped files.

    Attributes: `latent_shape` (C, h, w); `content_hash`, equal for equal pictures, transform and VAE.
    """

    def __init__(
        self, keys: Sequence[str], entries: Sequence[Entry], *, latent_shape: tuple[int, int, int]
    ) -> None:
        self.latent_shape = latent_shape
        folders = {path.parent.name for path, _ in entries}
        self.content_hash = hashlib.sha256(" ".join([*sorted(folders), *keys]).encode()).hexdigest()
        self._entries = list(entries)
        self._shards: dict[Path, dict[str, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def mean(self, index: int) -> torch.Tensor:
        """Scaled posterior mean of one picture, (C, h, w) float32."""
        return self.means([index])[0]

    def means(self, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Scaled posterior means of pictures, (B, C, h, w) float32."""
        return self._gather("mean", indices)

    def stds(self, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Scaled posterior standard deviations of pictures, (B, C, h, w) float32."""
        return self._gather("std", indices)

    def _gather(self, name: str, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        places = [self._entries[index] for index in torch.as_tensor(indices).tolist()]
        if not places:
            return torch.empty((0, *self.latent_shape))
        return torch.stack([self._shard(path)[name][row] for path, row in places])

    def _shard(self, path: Path) -> dict[str, torch.Tensor]:
        if path not in self._shards:
            with safe_open(path, framework="pt") as shard:
                self._shards[path] = {name: shard.get_tensor(name) for name in ("mean", "std")}
        return self._shards[path]
