"""The audits of a finished run: catalogue, base and shipped model by one set of limits, fixed beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from ..configs.schema import AuditConfig
from ..data.catalogue import Catalogue
from ..data.latents import LatentCache, cache_latents
from ..data.transform import ImageTransform
from ..evaluation import AuditReport, Limits, audit, calibrate, contact_sheet
from ..inference.generate import batch_that_fits, generate
from ..pca import Sampler, StartDistribution

CALIBRATION_PICTURES = 1000


@dataclass(frozen=True)
class Audited:
    """Pictures with their audit."""

    pictures: list[Image.Image]
    prompts: list[str]
    report: AuditReport


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> list[Image.Image]:
    """Pictures of scaled latents (B, C, h, w)."""
    processor, shift = VaeImageProcessor(), vae.config.get("shift_factor") or 0.0
    pictures: list[Image.Image] = []
    for part in latents.split(batch_that_fits(latents.shape[-2] * latents.shape[-1])):
        unscaled = part.to(vae.device, vae.dtype) / vae.config.scaling_factor + shift
        pictures += processor.postprocess(vae.decode(unscaled).sample)
    return pictures


def fix_limits(catalogue: Catalogue, cache: LatentCache, vae: AutoencoderKL) -> Limits:
    """The catalogue's own limits, from its training pictures after a VAE round trip.

    What the VAE cannot draw is not held against a model that draws through it.
    """
    chosen = round_robin(catalogue, CALIBRATION_PICTURES)
    names = [catalogue.pictures[i].class_name for i in chosen]
    return calibrate(decode(vae, cache.means(chosen)), classes=names)


def round_robin(catalogue: Catalogue, count: int) -> list[int]:
    """Rows of at most `count` pictures, one class after the other, so that none is left out."""
    by_class: list[list[int]] = [[] for _ in catalogue.class_names]
    for row, class_id in enumerate(catalogue.class_ids.tolist()):
        by_class[class_id].append(row)
    longest = max(map(len, by_class))
    return [rows[turn] for turn in range(longest) for rows in by_class if turn < len(rows)][:count]


def start_of(start_distribution: StartDistribution) -> str:
    """How the pipeline starts from it: from draws where there are components, else from the mean."""
    return "draw" if start_distribution.components.shape[1] else "mean"


def prompts_of(catalogue: Catalogue, count: int) -> tuple[list[str], list[str]]:
    """Captions and class names of `count` pictures, going round the classes, again when there are fewer."""
    order = round_robin(catalogue, count)
    rows = [order[i % len(order)] for i in range(count)]
    return [catalogue.captions[i] for i in rows], [catalogue.pictures[i].class_name for i in rows]


def audit_held_out(
    catalogue: Catalogue, vae: AutoencoderKL, *, limits: Limits, transform: ImageTransform, cache_dir: Path
) -> Audited:
    """Held-out catalogue pictures, after the same round trip: what a perfect model would score."""
    cache = cache_latents(catalogue, vae, transform, cache_dir=cache_dir, device=vae.device, progress=False)
    pictures = decode(vae, cache.means(range(len(cache))))
    prompts = catalogue.captions
    classes = [picture.class_name for picture in catalogue.pictures]
    return Audited(pictures, prompts, audit(pictures, limits, classes=classes))


def audit_model(
    pipeline: Any,
    catalogue: Catalogue,
    *,
    limits: Limits,
    start: str,
    settings: AuditConfig,
    seed: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Audited:
    """Pictures of held-out captions from one start; equal seeds give every model and start equal noises."""
    prompts, classes = prompts_of(catalogue, settings.pictures)
    pictures = generate(
        pipeline,
        prompts,
        class_names=classes if pipeline.start_distribution is not None else None,
        start=start,
        sampler=Sampler(settings.scheduler, settings.steps),
        guidance_scale=settings.guidance_scale,
        seed=seed,
        advance=advance,
    )
    return Audited(pictures, prompts, audit(pictures, limits, classes=classes))


def audit_file(name: str, run: Path) -> Path:
    """Where the audit of that name is kept."""
    return run / "audits" / f"{name.replace(' ', '_')}.json"


def save_audit(audited: Audited, *, name: str, run: Path, shown: int = 64) -> Path:
    """Writes audits/<name>.json and samples/<name>.png, the pictures with their failures marked."""
    file = audit_file(name, run)
    picture = run / "samples" / f"{file.stem}.png"
    for path in (file, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    audited.report.save(file)
    sheet(audited, title=name, shown=shown).save(picture)
    return picture


def sheet(audited: Audited, *, title: str, shown: int = 64) -> Image.Image:
    """The first pictures with their prompts, failures marked."""
    return contact_sheet(
        audited.pictures[:shown],
        captions=audited.prompts[:shown],
        failures=audited.report.failures[:shown],
        title=title,
    )


def side_by_side(rows: Mapping[str, Sequence[Image.Image]], *, columns: int = 8) -> Image.Image:
    """A row of pictures for each name, the same prompt and seed down a column: the picture to look at."""
    pictures = [picture for row in rows.values() for picture in row[:columns]]
    captions = [name for name, row in rows.items() for _ in row[:columns]]
    return contact_sheet(pictures, captions=captions, columns=columns, tile=128)
