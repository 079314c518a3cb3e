"""Catalogue -> latents -> start distribution: everything that happens before step 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..configs.schema import STUDIO, Config, DataConfig
from ..data.buckets import Buckets, assign_buckets
from ..data.catalogue import Catalogue, load_catalogue
from ..data.latents import cache_latents
from ..data.processes import ALONE, Processes
from ..data.studio import studio_catalogue
from ..inference.text import text_encoders
from ..pca import StartDistribution, Statistics
from .conditions import conditions_of
from .part import Part, size_of, transform_of
from .start import check_band, fit_start
from .text_cache import cache_pooled_text


@dataclass(frozen=True)
class Prepared:
    """What training and audits read."""

    train: Part
    held_out: Part
    start_distribution: StartDistribution
    statistics: dict[tuple[int, int], Statistics]  # by the size of the pictures


def open_catalogue(
    config: DataConfig,
    *,
    condition_column: str | None = None,
    captioned: bool = True,
    processes: Processes = ALONE,
) -> Catalogue:
    """The catalogue a config names; unless `captioned`, its pictures need no caption.

    Raises ValueError as `load_catalogue` does.
    """
    if config.source == STUDIO:
        if condition_column is not None:
            raise ValueError(
                f"model.controlnet.condition must be segment for {STUDIO}, which has no column "
                f"{condition_column!r}"
            )
        studio = config.studio
        pictures = min(studio.pictures, config.limit or studio.pictures)
        return studio_catalogue(
            pictures,
            size=config.resolution,
            seed=studio.seed,
            look=studio.look,
            class_prefixes=config.class_prefixes,
        )
    return load_catalogue(
        config.source,
        image_columns=config.image_columns,
        caption_column=config.caption_column if captioned else None,
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


def latents_folder(config: DataConfig, output: Path) -> Path:
    """Where latents are kept: as configured, else a folder `latents` beside the output."""
    return Path(config.cache_dir) if config.cache_dir else output.parent / "latents"


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
    pairs, wanted = (
        list(
            zip(
                buckets_of(part, config, complete=False).bucket_ids.tolist(),
                part.class_ids.tolist(),
                strict=True,
            )
        )
        for part in (train, held_out)
    )
    known = set(pairs)
    kept = [row for row, pair in enumerate(wanted) if pair in known]
    if not kept:
        raise ValueError(
            "catalogue must have a held-out picture whose class has training pictures in its bucket, got "
            f"none of {len(held_out)}"
        )
    left_out = [
        (held_out.origins[row], "held out alone in its bucket")
        for row, pair in enumerate(wanted)
        if pair not in known
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
    reserve: int = 0,
    processes: Processes = ALONE,
) -> Prepared:
    """Caches all latents and fits the start distribution to the training part's.

    reserve: how many axes beyond the start distribution's the statistics are to have.
    Raises ValueError as `check_class_sizes`, `check_band` and `buckets_of` do, before anything is encoded.
    """
    buckets = [buckets_of(part, config.data, complete=part is parts[0]) for part in parts]
    check_class_sizes(parts[0], buckets[0], config.start.components)
    check_band(config.start, pipeline.vae, buckets[0].sizes)
    train, held_out = (
        encode_part(
            catalogue,
            pipeline,
            config,
            cache_dir=cache_dir,
            device=device,
            buckets=own,
            processes=processes,
        )
        for catalogue, own in zip(parts, buckets, strict=True)
    )
    start_distribution, statistics = fit_start(
        train,
        pipeline,
        config=config,
        t_min=t_min,
        cache_dir=cache_dir,
        device=device,
        reserve=reserve,
        processes=processes,
    )
    return Prepared(train, held_out, start_distribution, statistics)


def encode_part(
    catalogue: Catalogue,
    pipeline: Any,
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
        pipeline.vae,
        base,
        cache_dir=cache_dir,
        device=device,
        processes=processes,
        buckets=buckets,
        progress=processes.is_main,
    )
    transforms = [transform_of(config.data, size_of(buckets, row)) for row in range(len(catalogue))]
    text_embeds = None
    if config.start.family == "text":
        text_encoders(pipeline)[-1].to(device)
        text_embeds = cache_pooled_text(
            pipeline, catalogue.captions, cache_dir=cache_dir, processes=processes
        )
    conditions = conditions_of(catalogue, config.model.controlnet, transforms)
    return Part(catalogue, cache, buckets, conditions, text_embeds)
