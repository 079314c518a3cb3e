"""The diagnosis of a catalogue's start distribution, and its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..configs.schema import Config
from ..data.processes import ALONE, Processes
from ..evaluation.start_page import ClassPictures, write_start_page
from ..inference.start import at_first_step, signal_power
from ..inference.vae import pictures_of
from ..pca import Diagnosis, PictureNumbers, StartDistribution, build_scheduler, diagnose, read_pictures
from .models import training_schedule
from .part import Part
from .prepare import Prepared
from .start import StartBatches, bucket_batches, samplers_of

AXES = 16  # read for the diagnosis, whatever the start distribution has
SHOWN_COMPONENTS = 3  # of a class, at -2 and +2 standard deviations
SHOWN_TEXTS = 12
SHOWN_OUTLIERS = 8  # those that are flagged, and others up to this number
THUMBNAIL = 192

Size = tuple[int, int]


def diagnose_start(
    prepared: Prepared, pipeline: Any, *, config: Config, processes: Processes = ALONE
) -> dict[Size, tuple[Diagnosis, list[int]]]:
    """The diagnosis of the pictures of each size, and the rows that its outliers count from.

    The processes share the reading; all get the same.
    """
    alphas_cumprod, _ = training_schedule(pipeline)
    first = first_steps(pipeline.scheduler, config)
    found = {}
    for size, statistics in prepared.statistics.items():
        numbers, rows = {}, {}
        for name, part in (("train", prepared.train), ("held out", prepared.held_out)):
            batches = _batches_of(part, size, processes=processes)
            read = read_pictures(statistics, batches)
            shares = zip(*processes.gather([read]), strict=True)
            numbers[name] = PictureNumbers(*(torch.cat(column) for column in shares))
            rows[name] = [row for share in processes.gather([batches.rows]) for row in share]
        diagnosis = diagnose(
            statistics,
            numbers["train"],
            numbers["held out"],
            first=first,
            alpha_last=float(alphas_cumprod[-1]),
        )
        found[size] = diagnosis, rows["train"]
    return found


def first_steps(noise_scheduler: Any, config: Config) -> dict[str, tuple[int, float]]:
    """Of every declared sampler the first timestep, and the power of the picture in what it starts from."""
    found = {}
    for sampler in samplers_of(config.start):
        scheduler, t_0 = at_first_step(build_scheduler(noise_scheduler, sampler), sampler.steps)
        spacing = f", {sampler.spacing}" if sampler.spacing else ""
        label = f"{sampler.scheduler.removesuffix('Scheduler')} {sampler.steps}{spacing}"
        found[label] = int(t_0), signal_power(scheduler, t_0)
    return found


def _batches_of(part: Part, size: Size, *, processes: Processes) -> StartBatches:
    if size not in part.buckets.sizes:
        return StartBatches(part, [])
    return bucket_batches(part, part.buckets.sizes.index(size), processes=processes)


def write_pages(
    prepared: Prepared,
    pipeline: Any,
    diagnoses: dict[Size, tuple[Diagnosis, list[int]]],
    *,
    title: str,
    facts: dict[str, str],
    folder: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Path]:
    """One page a size, start.html for the start distribution's own; advance(n) after n decoded ones."""
    pages: list[Path] = []
    for size, (diagnosis, rows) in diagnoses.items():
        name = "start.html" if not pages else f"start_{size[0]}x{size[1]}.html"
        own = prepared.start_distribution.at(*prepared.statistics[size].shape[1:])
        pages.append(
            write_start_page(
                folder / name,
                title=title if len(diagnoses) == 1 else f"{title}, {size[0]} x {size[1]}",
                facts=facts,
                diagnosis=diagnosis,
                pictures=_class_pictures(prepared, own, pipeline.vae, size=size, advance=advance),
                outliers=[
                    (outlier, *_shown(prepared.train, rows[outlier.row]))
                    for number, outlier in enumerate(diagnosis.outliers)
                    if outlier.flagged or number < SHOWN_OUTLIERS
                ],
                text_means=_text_means(prepared, own, pipeline.vae, rows),
            )
        )
    return pages


def pictures_to_decode(prepared: Prepared) -> int:
    """How often `write_pages` will advance."""
    shown = 1 + 2 * SHOWN_COMPONENTS
    return sum(shown * sum(n > 0 for n in s.counts) for s in prepared.statistics.values())


def _class_pictures(
    prepared: Prepared, own: StartDistribution, vae: Any, *, size: Size, advance: Callable[[int], None]
) -> dict[str, ClassPictures]:
    """Means and leading axes of the classes that have pictures at this size."""
    statistics = prepared.statistics[size]
    shown = min(SHOWN_COMPONENTS, statistics.axes.shape[1])
    axes, pictures = statistics.components(shown), {}
    for c, name in enumerate(own.class_names):
        if not statistics.counts[c]:
            continue
        mean = statistics.mean[c]
        steps = 2 * statistics.variances[c, :shown].sqrt().float().view(-1, 1, 1, 1) * axes[c]
        sides = torch.stack([mean - steps, mean + steps], dim=1).flatten(0, 1)
        drawn = pictures_of(vae, torch.cat([mean[None], sides]))
        pairs = zip(drawn[1::2], drawn[2::2], strict=True)
        varies = statistics.variances[c, :shown] > 0
        kept = [pair for pair, varied in zip(pairs, varies, strict=True) if varied]
        pictures[name] = ClassPictures(drawn[0], kept)
        advance(1 + 2 * SHOWN_COMPONENTS)
    return pictures


def _text_means(
    prepared: Prepared, own: StartDistribution, vae: Any, rows: Sequence[int]
) -> list[tuple[str, Image.Image]]:
    """Captions with their expected starts, where the start follows from the text."""
    part = prepared.train
    if part.text_embeds is None or not own.needs_text:
        return []
    spread = rows[:: max(1, len(rows) // SHOWN_TEXTS)][:SHOWN_TEXTS]
    expected = own.expected(part.catalogue.class_ids[spread], text_embeds=part.text_embeds[spread])
    captions = [part.catalogue.captions[row] for row in spread]
    return list(zip(captions, pictures_of(vae, expected), strict=True))


def _shown(part: Part, row: int) -> tuple[Image.Image, str]:
    """A picture's thumbnail and where it comes from."""
    picture = part.catalogue.image(row).convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture, str(part.catalogue.origins[row])


def facts_of(prepared: Prepared, config: Config) -> dict[str, str]:
    """What was fitted, as the page states it."""
    start, catalogue = prepared.start_distribution, prepared.train.catalogue
    family = f"dct, {config.start.band} frequencies an axis" if start.family == "dct" else start.family
    trained = f"t >= {start.offset_from}" if start.config["skip_interval"] else "empty: nothing is trained"
    counts = [statistics.counts for statistics in prepared.statistics.values()]
    facts = {
        "base": config.model.base,
        "catalogue": config.data.source,
        "pictures": f"{sum(map(sum, counts))} fitted, {len(prepared.held_out)} held out",
        "classes": str(len(catalogue.class_names)),
        "latents": ", ".join(" x ".join(map(str, s.shape)) for s in prepared.statistics.values()),
        "family": f"{family}, K = {start.variances.shape[1]}",
        "offset range": trained,
    }
    if start.needs_text:
        total = float(start.variances.sum())
        share = 1 - float(start.residual_variances.sum()) / total if total else 0.0
        facts["text"] = f"tells {share:.0%} of the variance of the K components, on captions left out"
    return facts
