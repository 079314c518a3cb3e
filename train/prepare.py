"""Catalogue -> latents -> start distribution: everything that happens before step 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..configs.schema import Config, DataConfig, StartConfig
from ..data.buckets import Buckets, assign_buckets
from ..data.catalogue import Catalogue, load_catalogue
from ..data.latents import LatentCache, cache_latents
from ..data.processes import ALONE, Processes
from ..data.studio import studio_catalogue
from ..data.transform import ImageTransform
from ..pca import DEFAULT_SAMPLERS, Sampler, StartDistribution, offset_from, vae_fingerprint
from .conditions import Conditions, conditions_of

STUDIO = "photo-studio"


@dataclass(frozen=True)
class Part:
    """The training or the held-out part of a catalogue: its pictures, their latents, sizes and conditions."""

    catalogue: Catalogue
    cache: LatentCache
    buckets: Buckets
    condition: Conditions | None = None

    def __len__(self) -> int:
        return len(self.catalogue)

    def by_size(self, rows: Sequence[int], places: Sequence[int]) -> dict[tuple[int, int], list[int]]:
        """(height, width) in pixels -> the places i whose row rows[i] has that size."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i in places:
            groups.setdefault(size_of(self.buckets, rows[i]), []).append(i)
        return groups


def size_of(buckets: Buckets, row: int) -> tuple[int, int]:
    """Height and width in pixels that a picture is trained at."""
    return buckets.sizes[int(buckets.bucket_ids[row])]


@dataclass(frozen=True)
class Prepared:
    """What training and audits read."""

    train: Part
    held_out: Part
    start_distribution: StartDistribution


def open_catalogue(
    config: DataConfig, *, condition_column: str | None = None, processes: Processes = ALONE
) -> Catalogue:
    """The catalogue a config names. Raises ValueError as `load_catalogue` does."""
    if config.source == STUDIO:
        if condition_column is not None:
            raise ValueError(
                f"model.controlnet.condition must be segment for {STUDIO}, which has no column "
                f"{condition_column!r}"
            )
        studio = config.studio
        return studio_catalogue(studio.pictures, size=config.resolution, seed=studio.seed, look=studio.look)
    return load_catalogue(
        config.source,
        image_columns=config.image_columns,
        caption_column=config.caption_column,
        class_column=config.class_column,
        image_classes=config.image_classes,
        class_prefixes=config.class_prefixes,
        backdrop=config.backdrop,
        on_bad_image=config.on_bad_image,
        limit=config.limit,
        split=config.split,
        condition_column=condition_column,
        processes=processes,
        progress=processes.is_main,
    )


def transform_of(config: DataConfig, size: tuple[int, int] | None = None) -> ImageTransform:
    """How pictures become training pixels, at a (height, width) or the base resolution."""
    height, width = size or (config.resolution, config.resolution)
    return ImageTransform(height, width, fit=config.fit, backdrop=config.backdrop)


def latents_folder(config: DataConfig, output: Path) -> Path:
    """Where latents are kept: as configured, else a folder `latents` beside the output."""
    return Path(config.cache_dir) if config.cache_dir else output.parent / "latents"


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


def check_class_sizes(catalogue: Catalogue, buckets: Buckets, components: int) -> None:
    """Raises ValueError on a class with too few training pictures for K components, before anything is
    encoded. In a bucket a class may have none at all: then it has no start at that size."""
    for bucket, size in enumerate(buckets.sizes):
        own = catalogue.class_ids[buckets.bucket_ids == bucket]
        where = f" at {size[0]} x {size[1]}" if len(buckets.sizes) > 1 else ""
        for name, count in zip(
            catalogue.class_names, own.bincount(minlength=len(catalogue.class_names)).tolist(), strict=True
        ):
            if count < components + 1 and (count or len(buckets.sizes) == 1):
                raise ValueError(
                    f"start.components must be below the training pictures of every class, "
                    f"got {components} for class {name!r} with {count}{where}"
                )


def split_catalogue(config: Config, *, processes: Processes = ALONE) -> tuple[Catalogue, Catalogue]:
    """The catalogue's training and held-out parts; nothing is encoded.

    Raises ValueError as `open_catalogue` does, and on a catalogue too small to hold a picture out.
    """
    controlnet, model = config.model.controlnet, config.model
    column = controlnet.column if controlnet else None
    catalogue = open_catalogue(config.data, condition_column=column, processes=processes)
    if model.text_encoder == "token":
        catalogue = catalogue.prefixed(model.token.word)
    train, held_out = catalogue.split(config.data.held_out, config.run.seed)
    if not len(held_out):
        raise ValueError(
            f"catalogue must have a class of at least two pictures to hold one out, got {len(train)}"
        )
    return train, _with_a_start(held_out, train, config.data)


def _with_a_start(held_out: Catalogue, train: Catalogue, config: DataConfig) -> Catalogue:
    """The held-out pictures whose class has training pictures in their bucket: the others have no start.

    Raises ValueError if none is left.
    """
    known, wanted = (
        list(
            zip(
                buckets_of(part, config, complete=False).bucket_ids.tolist(),
                part.class_ids.tolist(),
                strict=True,
            )
        )
        for part in (train, held_out)
    )
    kept = [row for row, pair in enumerate(wanted) if pair in set(known)]
    if not kept:
        raise ValueError(
            "catalogue must have a held-out picture whose class has training pictures in its bucket, got "
            f"none of {len(held_out)}"
        )
    left_out = [
        (held_out.origins[row], "held out alone in its bucket")
        for row in range(len(held_out))
        if row not in set(kept)
    ]
    train.dropped += left_out
    return held_out.subset(kept)


def buckets_of(catalogue: Catalogue, config: DataConfig, *, complete: bool = True) -> Buckets:
    """The size each picture is trained at; one for all without data.buckets.

    Raises ValueError on a bucket that gets no picture, if all must.
    """
    if config.buckets is None:
        return Buckets(
            [(config.resolution, config.resolution)], torch.zeros(len(catalogue), dtype=torch.long)
        )
    return assign_buckets(catalogue.sizes, config.buckets, allow_empty=not complete)


def prepare(
    config: Config,
    pipeline: Any,
    *,
    parts: tuple[Catalogue, Catalogue],
    t_min: int,
    cache_dir: Path,
    device: str | torch.device,
    processes: Processes = ALONE,
) -> Prepared:
    """Caches all latents and fits the start distribution to the training part's.

    Raises ValueError as `check_class_sizes` and `buckets_of` do, before anything is encoded.
    """
    buckets = [buckets_of(part, config.data, complete=part is parts[0]) for part in parts]
    check_class_sizes(parts[0], buckets[0], config.start.components)
    train, held_out = (
        encode_part(
            catalogue,
            pipeline.vae,
            config,
            cache_dir=cache_dir,
            device=device,
            buckets=own,
            processes=processes,
        )
        for catalogue, own in zip(parts, buckets, strict=True)
    )
    start_distribution = fit_start(train, pipeline, config=config, t_min=t_min, processes=processes)
    return Prepared(train, held_out, start_distribution)


def encode_part(
    catalogue: Catalogue,
    vae: Any,
    config: Config,
    *,
    cache_dir: Path,
    device: str | torch.device,
    buckets: Buckets | None = None,
    processes: Processes = ALONE,
) -> Part:
    """A part of a catalogue with its latents cached, the encoding divided over the processes.

    buckets: what `buckets_of` makes of the catalogue, if None.
    """
    base = transform_of(config.data)
    buckets = buckets or buckets_of(catalogue, config.data, complete=False)
    cache = cache_latents(
        catalogue,
        vae,
        base,
        cache_dir=cache_dir,
        device=device,
        processes=processes,
        buckets=buckets,
        progress=processes.is_main,
    )
    transforms = [transform_of(config.data, size_of(buckets, row)) for row in range(len(catalogue))]
    return Part(catalogue, cache, buckets, conditions_of(catalogue, config.model.controlnet, transforms))


def fit_start(
    part: Part, pipeline: Any, *, config: Config, t_min: int, processes: Processes = ALONE
) -> StartDistribution:
    """The start distribution of cached latents, with everything it must remember about their making.

    With several buckets one for each: the square of data.resolution on top, or where that is none of them
    the bucket with the most pictures. Means are summed by all processes together; components are computed
    by each, from all pictures.
    """
    sizes, base = part.buckets.sizes, transform_of(config.data)
    counts = part.buckets.bucket_ids.bincount(minlength=len(sizes)).tolist()
    first = max(range(len(sizes)), key=lambda i: (sizes[i] == (base.height, base.width), counts[i]))
    fitted = {}
    for i in range(len(sizes)):
        rows = (part.buckets.bucket_ids == i).nonzero()[:, 0].tolist()
        divided = not config.start.components and len(rows) >= processes.count > 1
        rows = processes.share(rows) if divided else rows
        fitted[i] = StartDistribution.fit(
            _Batches(part, [rows[j : j + 256] for j in range(0, len(rows), 256)]),
            class_names=part.catalogue.class_names,
            components=config.start.components,
            allow_empty=len(sizes) > 1,
            reduce=(lambda part: sum(processes.gather([part]))) if divided else None,
            num_train_timesteps=pipeline.scheduler.config.num_train_timesteps,
            skip_interval=config.start.skip_interval if config.start.enabled else 0,
            offset_from=t_min,
            samplers=samplers_of(config.start),
            caption_prefixes=part.catalogue.prefixes,
            vae_fingerprint=vae_fingerprint(pipeline.vae),
            image_transform=transform_of(config.data, sizes[i]).to_dict(),
        )
    start_distribution = fitted.pop(first)
    for bucket in fitted.values():
        start_distribution.add_bucket(bucket)
    return start_distribution


@dataclass(frozen=True)
class _Batches:
    """(latents, class_ids) batches that can be walked over more than once."""

    part: Part
    batches: list[list[int]]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in self.batches:
            yield self.part.cache.means(rows), self.part.catalogue.class_ids[rows]
