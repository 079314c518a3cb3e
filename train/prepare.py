"""Catalogue -> latents -> start distribution: everything that happens before step 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from ..configs.schema import Config, DataConfig, StartConfig
from ..data.catalogue import Catalogue, load_catalogue
from ..data.latents import LatentCache, cache_latents
from ..data.studio import studio_catalogue
from ..data.transform import ImageTransform
from ..pca import DEFAULT_SAMPLERS, Sampler, StartDistribution, offset_from, vae_fingerprint

STUDIO = "photo-studio"


@dataclass(frozen=True)
class Prepared:
    """What training reads: the split catalogue, cached latents of its training part, the start
    distribution."""

    train: Catalogue
    held_out: Catalogue
    cache: LatentCache
    start_distribution: StartDistribution


def open_catalogue(config: DataConfig) -> Catalogue:
    """The catalogue a config names. Raises ValueError as `load_catalogue` does."""
    if config.source == STUDIO:
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
    )


def transform_of(config: DataConfig) -> ImageTransform:
    return ImageTransform(config.resolution, config.resolution, fit=config.fit, backdrop=config.backdrop)


def latents_folder(config: DataConfig, output: Path) -> Path:
    """Where latents are kept: as configured, else a folder `latents` beside the output."""
    return Path(config.cache_dir) if config.cache_dir else output.parent / "latents"


def samplers_of(config: StartConfig) -> list[Sampler]:
    """The declared samplers; the default set when the config names none."""
    if config.samplers is None:
        return list(DEFAULT_SAMPLERS)
    return [Sampler(sampler.scheduler, sampler.steps, sampler.spacing) for sampler in config.samplers]


def offset_start(pipeline: StableDiffusionPipeline, config: StartConfig) -> int:
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


def check_class_sizes(catalogue: Catalogue, components: int) -> None:
    """Raises ValueError on a class with too few training pictures for K components, before anything is
    encoded."""
    counts = catalogue.class_ids.bincount(minlength=len(catalogue.class_names)).tolist()
    for name, count in zip(catalogue.class_names, counts, strict=True):
        if count < components + 1:
            raise ValueError(
                f"start.components must be below the training pictures of every class, "
                f"got {components} for class {name!r} with {count}"
            )


def split_catalogue(config: Config) -> tuple[Catalogue, Catalogue]:
    """The catalogue's training and held-out parts, checked for enough pictures a class; nothing is encoded.

    Raises ValueError as `open_catalogue` and `check_class_sizes` do.
    """
    train, held_out = open_catalogue(config.data).split(config.data.held_out, config.run.seed)
    check_class_sizes(train, config.start.components)
    if not len(held_out):
        raise ValueError(
            f"catalogue must have a class of at least two pictures to hold one out, got {len(train)}"
        )
    return train, held_out


def prepare(
    config: Config,
    pipeline: StableDiffusionPipeline,
    *,
    parts: tuple[Catalogue, Catalogue],
    t_min: int,
    cache_dir: Path,
    device: str | torch.device,
) -> Prepared:
    """Caches the latents of the training part and fits the start distribution to them."""
    train, held_out = parts
    cache = cache_latents(train, pipeline.vae, transform_of(config.data), cache_dir=cache_dir, device=device)
    start_distribution = fit_start(train, cache, pipeline, config=config, t_min=t_min)
    return Prepared(train, held_out, cache, start_distribution)


def fit_start(
    catalogue: Catalogue, cache: LatentCache, pipeline: StableDiffusionPipeline, *, config: Config, t_min: int
) -> StartDistribution:
    """The start distribution of cached latents, with everything it must remember about their making."""
    batches = [range(i, min(i + 256, len(cache))) for i in range(0, len(cache), 256)]
    return StartDistribution.fit(
        _Batches(cache, catalogue, batches),
        class_names=catalogue.class_names,
        components=config.start.components,
        num_train_timesteps=pipeline.scheduler.config.num_train_timesteps,
        skip_interval=config.start.skip_interval if config.start.enabled else 0,
        offset_from=t_min,
        samplers=samplers_of(config.start),
        caption_prefixes=catalogue.prefixes,
        vae_fingerprint=vae_fingerprint(pipeline.vae),
        image_transform=transform_of(config.data).to_dict(),
    )


@dataclass(frozen=True)
class _Batches:
    """(latents, class_ids) batches that can be walked over more than once."""

    cache: LatentCache
    catalogue: Catalogue
    rows: list[range]

    def __iter__(self):  # type: ignore[no-untyped-def]
        for rows in self.rows:
            yield self.cache.means(list(rows)), self.catalogue.class_ids[rows.start : rows.stop]
