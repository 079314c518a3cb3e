"""Previews through the pipeline that ships: fixed prompts and seeds, one contact sheet a visit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ..configs.schema import AuditConfig
from ..data.processes import Processes
from ..evaluation import contact_sheet
from ..inference.pipelines import (
    OffsetStableDiffusionControlNetPipeline,
    OffsetStableDiffusionPipeline,
    OffsetStableDiffusionXLControlNetPipeline,
    OffsetStableDiffusionXLPipeline,
)
from ..inference.text import text_encoders
from ..pca import StartDistribution
from ..whole_file import whole
from .draw import draw, round_robin
from .judge import side_by_side
from .part import Part
from .training import Training

PREVIEWS = 16
GROWTH = "growth.png"  # one row a visit
SHOWN_IN_GROWTH = 8
MOST_IN_GROWTH = 40  # visits: a page's picture cannot be of any height
TILE = 128
SHIPPED: dict[tuple[int, bool], Any] = {
    (1, False): OffsetStableDiffusionPipeline,
    (2, False): OffsetStableDiffusionXLPipeline,
    (1, True): OffsetStableDiffusionControlNetPipeline,
    (2, True): OffsetStableDiffusionXLControlNetPipeline,
}


def shipping_pipeline(
    pipeline: Any, start_distribution: StartDistribution | None, *, controlnet: Any = None
) -> Any:
    """The pipeline that ships, over the same modules."""
    encoders = len(text_encoders(pipeline))
    options = (
        {"requires_safety_checker": False}
        if encoders == 1
        else {"force_zeros_for_empty_prompt": pipeline.config.force_zeros_for_empty_prompt}
    )
    components = {**pipeline.components, "start_distribution": start_distribution}
    components.pop("controlnet", None)
    if controlnet is not None:
        components["controlnet"] = controlnet
    return SHIPPED[encoders, controlnet is not None](**components, **options)


def preview_file(run: Path, step: int) -> Path:
    """Where the preview of a step is kept."""
    return run / "samples" / f"step_{step}.png"


def save_preview(
    training: Training,
    part: Part,
    start_distribution: StartDistribution,
    *,
    step: int,
    run: Path,
    settings: AuditConfig,
    processes: Processes,
) -> None:
    """Writes samples/step_N.png and adds a row to samples/growth.png. All processes call it and draw."""
    accelerator = training.accelerator
    rows = round_robin(part.catalogue, PREVIEWS, again=True)
    with training.evaluation() as networks, accelerator.autocast():
        pipeline = shipping_pipeline(networks.pipeline, start_distribution, controlnet=networks.controlnet)
        pipeline.safety_checker = None  # nothing is checked: it need not be on the device
        pipeline.to(accelerator.device)
        pictures = draw(
            pipeline,
            part,
            rows,
            start=start_distribution.default_start,
            settings=settings,
            processes=processes,
            latents_only=True,
        )
        networks.rest()
    if accelerator.is_main_process:
        folder = run / "samples"
        captions = [part.catalogue.captions[row] for row in rows]
        save_picture(
            contact_sheet(pictures, captions=captions, title=f"step {step}"), preview_file(run, step)
        )
        _grow(folder, pictures[:SHOWN_IN_GROWTH], step=step)
    accelerator.wait_for_everyone()


def save_picture(picture: Image.Image, file: Path) -> None:
    """Writes a PNG beside its place, then renames it."""
    with whole(file) as beside:
        picture.save(beside, format="PNG")


def _grow(folder: Path, pictures: list[Image.Image], *, step: int) -> None:
    """Keeps the first pictures of every visit, and lays out the whole visits up to this one, evenly chosen
    where there are many, as one sheet."""
    for number, picture in enumerate(pictures):
        save_picture(picture, folder / "growth" / f"{step}_{number}.png")
    visits: dict[int, list[Path]] = {}
    for file in sorted((folder / "growth").glob("*_*.png")):
        visits.setdefault(int(file.stem.split("_")[0]), []).append(file)
    drawn = [n for n, files in sorted(visits.items()) if n <= step and len(files) == len(pictures)]
    last = min(len(drawn), MOST_IN_GROWTH) - 1
    shown = [drawn[round(i * (len(drawn) - 1) / max(1, last))] for i in range(last + 1)]  # evenly
    rows = {f"step {n}": [_opened(file) for file in visits[n]] for n in shown}
    save_picture(side_by_side(rows, columns=SHOWN_IN_GROWTH), folder / GROWTH)


def _opened(file: Path) -> Image.Image:
    """A tile's worth of a picture, its file closed again: a long run has many."""
    with Image.open(file) as picture:
        return picture.convert("RGB").resize((TILE, round(TILE * picture.height / picture.width)))
