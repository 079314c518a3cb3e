"""The start distribution of a run: which timesteps start from it, and its fit to cached latents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..configs.schema import Config, StartConfig
from ..data.processes import ALONE, Processes
from ..inference.text import pooled_text
from ..pca import (
    DEFAULT_SAMPLERS,
    Sampler,
    StartDistribution,
    Statistics,
    fit_statistics,
    offset_from,
    text_fingerprint,
    vae_fingerprint,
)
from .part import Part, transform_of

BATCH = 64  # latents read at a time: larger blocks come from the system anew each time, page by page
ADDABLE = ("pca", "pooled", "diagonal")  # families that need nothing but what statistics hold


def samplers_of(config: StartConfig) -> list[Sampler]:
    """The declared samplers; the default set when the config names none."""
    if config.samplers is None:
        return list(DEFAULT_SAMPLERS)
    return [Sampler(sampler.scheduler, sampler.steps, sampler.spacing) for sampler in config.samplers]


def offset_start(pipeline: Any, config: StartConfig) -> int:
    """First timestep of the offset range: as configured, else from the declared samplers; T when disabled.

    Raises ValueError when it falls below 0.9 T without being asked for by name.
    """
    total = pipeline.scheduler.config.num_train_timesteps
    if not config.enabled:
        return total
    if config.offset_from is not None:
        if config.offset_from >= total:
            raise ValueError(f"start.offset_from must be below {total}, got {config.offset_from}")
        return config.offset_from
    return offset_from(pipeline.scheduler, samplers_of(config), skip_interval=config.skip_interval)


def check_band(config: StartConfig, vae: Any, sizes: Sequence[tuple[int, int]]) -> None:
    """Raises ValueError on more low frequencies than the latents of the smallest pictures have."""
    most = min(map(min, sizes)) // 2 ** (len(vae.config.block_out_channels) - 1)
    if config.family == "dct" and config.band > most:
        raise ValueError(f"start.band must be at most {most}, the latents' shorter side, got {config.band}")


class StartBatches:
    """(latents, class_ids) batches of some pictures of a part, class by class; can be walked over again."""

    def __init__(self, part: Part, rows: Sequence[int]) -> None:
        self.part = part
        self._class_ids = part.catalogue.class_ids
        self.rows = sorted(rows, key=self._class_ids.tolist().__getitem__)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self._read(self.rows)

    def of(self, class_ids: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of these classes alone."""
        wanted = torch.isin(self._class_ids, torch.tensor(list(class_ids)))
        return self._read([row for row in self.rows if wanted[row]])

    def name(self, position: int) -> str:
        """Where the picture at a position of the order comes from."""
        return self.part.catalogue.origins[self.rows[position]]

    def _read(self, rows: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for first in range(0, len(rows), BATCH):
            some = rows[first : first + BATCH]
            yield self.part.cache.means(some), self._class_ids[some]


def bucket_batches(part: Part, bucket: int, *, processes: Processes = ALONE) -> StartBatches:
    """This process's share of the pictures of one size."""
    rows = (part.buckets.bucket_ids == bucket).nonzero()[:, 0].tolist()
    return StartBatches(part, processes.share(rows))


def bucket_statistics(
    part: Part,
    bucket: int,
    *,
    components: int,
    reserve: int = 0,
    allow_empty: bool,
    cache_dir: Path,
    device: str | torch.device = "cpu",
    processes: Processes = ALONE,
) -> Statistics:
    """The statistics of the pictures of one size; kept beside their latents, class by class, so that an
    interrupted fit goes on where it was and a repeated one is read back.

    components: axes every class must have; reserve: further ones, as far as they go; allow_empty: whether a
    class may lack pictures.
    """
    batches = bucket_batches(part, bucket, processes=processes)
    told: list[Any] = [part.cache.content_hash, part.catalogue.class_names, part.catalogue.class_ids.tolist()]
    told += [part.buckets.sizes[bucket], components, reserve]
    digest = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
    return fit_statistics(
        batches,
        class_names=part.catalogue.class_names,
        components=components,
        reserve=reserve,
        allow_empty=allow_empty,
        processes=processes,
        device=device,
        work=cache_dir / "statistics" / digest,
        name_of=batches.name,
    )


def fit_start(
    part: Part,
    pipeline: Any,
    *,
    config: Config,
    t_min: int,
    cache_dir: Path,
    device: str | torch.device = "cpu",
    reserve: int = 0,
    processes: Processes = ALONE,
) -> tuple[StartDistribution, dict[tuple[int, int], Statistics]]:
    """The start distribution of cached latents, with everything it must remember about their making, and the
    statistics it was made of, by the size of the pictures.

    With several buckets one for each: the square of data.resolution on top, or where that is none of them
    the bucket with the most pictures. The processes share the pictures.
    """
    sizes, base = part.buckets.sizes, transform_of(config.data)
    counts = part.buckets.bucket_ids.bincount(minlength=len(sizes)).tolist()
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i] != (base.height, base.width), -counts[i]))
    shared = _remembered(part, pipeline, config=config, t_min=t_min)
    statistics, fitted = {}, []
    for i in order:
        found = bucket_statistics(
            part,
            i,
            components=config.start.components,
            reserve=reserve,
            allow_empty=len(sizes) > 1,
            cache_dir=cache_dir,
            device=device,
            processes=processes,
        )
        batches = bucket_batches(part, i, processes=processes)
        fitted.append(
            StartDistribution.fit(
                batches,
                statistics=found,
                class_names=part.catalogue.class_names,
                components=config.start.components,
                family=config.start.family,
                band=config.start.band,
                text_embeds=part.text_embeds.at(batches.rows) if part.text_embeds else None,
                allow_empty=len(sizes) > 1,
                processes=processes,
                device=device,
                image_transform=transform_of(config.data, sizes[i]).to_dict(),
                **shared,
            )
        )
        statistics[sizes[i]] = found
    start_distribution = fitted[0]
    for bucket in fitted[1:]:
        start_distribution.add_bucket(bucket)
    return start_distribution, statistics


def _remembered(part: Part, pipeline: Any, *, config: Config, t_min: int) -> dict[str, Any]:
    """What a start distribution keeps beside its tensors, the same for every size."""
    told = partial(pooled_text, pipeline, full_precision=True)
    return {
        "num_train_timesteps": pipeline.scheduler.config.num_train_timesteps,
        "skip_interval": config.start.skip_interval if config.start.enabled else 0,
        "offset_from": t_min,
        "samplers": samplers_of(config.start),
        "caption_prefixes": part.catalogue.prefixes,
        "vae_fingerprint": vae_fingerprint(pipeline.vae),
        "text_fingerprint": text_fingerprint(told) if part.text_embeds else None,
    }


def check_addable(start_distribution: StartDistribution) -> None:
    """Raises ValueError on a family to which pictures cannot be added without the old ones."""
    if start_distribution.family not in ADDABLE:
        allowed, got = ", ".join(ADDABLE), start_distribution.family
        raise ValueError(f"family must be one of {allowed} to add pictures, got {got}")


def add_to_start(
    earlier: StartDistribution,
    known: Mapping[tuple[int, int], Statistics],
    part: Part,
    *,
    cache_dir: Path,
    device: str | torch.device = "cpu",
    processes: Processes = ALONE,
) -> tuple[StartDistribution, dict[tuple[int, int], Statistics]]:
    """A start distribution and its statistics with further pictures; the old ones are not read again.

    known: the statistics by the size of the pictures, as `fit_start` gave them; part: the further pictures,
    its class names those of the catalogue so far and perhaps new ones. Means are exact, components as
    `Statistics.merge` says.
    Raises ValueError as `check_addable` does.
    """
    check_addable(earlier)
    names = part.catalogue.class_names
    merged = {}
    by_latents = {statistics.shape[1:]: size for size, statistics in known.items()}
    for size in (by_latents[latents] for latents in earlier.sizes):
        bucket = part.buckets.sizes.index(size)
        new = _no_pictures(names, known[size])
        if (part.buckets.bucket_ids == bucket).any():
            new = bucket_statistics(
                part,
                bucket,
                components=0,
                reserve=known[size].axes.shape[1],
                allow_empty=True,
                cache_dir=cache_dir,
                device=device,
                processes=processes,
            )
        # the further pictures first: theirs are all the class names, in order
        merged[size] = new.merge(known[size])
    keys = ("num_train_timesteps", "skip_interval", "offset_from", "samplers", "vae_fingerprint")
    kept = {key: earlier.config[key] for key in keys}
    prefixes = {**part.catalogue.prefixes, **(earlier.config["caption_prefixes"] or {})}
    fitted = [
        StartDistribution.fit(
            [],
            statistics=merged[by_latents[latents]],
            class_names=names,
            components=earlier.variances.shape[1],
            family=earlier.family,
            allow_empty=len(merged) > 1,
            caption_prefixes=prefixes,
            image_transform=earlier.at(*latents).config["image_transform"],
            **kept,
        )
        for latents in earlier.sizes
    ]
    for bucket in fitted[1:]:
        fitted[0].add_bucket(bucket)
    return fitted[0], merged


def _no_pictures(class_names: Sequence[str], like: Statistics) -> Statistics:
    """Statistics of no pictures, of the shape and with as many axes as another's."""
    n, (rank, d) = len(class_names), like.axes.shape[1:]
    none = torch.zeros(n, d, dtype=torch.float64)
    variances = torch.zeros(n, rank, dtype=torch.float64)
    return Statistics(tuple(class_names), like.shape, [0] * n, none, none, torch.zeros(n, rank, d), variances)
