"""Previews through the pipeline that ships: fixed prompts and seeds, one contact sheet a visit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from ..configs.schema import AuditConfig
from ..data.catalogue import Catalogue
from ..evaluation import contact_sheet
from ..inference.generate import generate
from ..inference.pipeline import OffsetStableDiffusionPipeline
from ..pca import Sampler, StartDistribution
from .judge import prompts_of, start_of
from .loop import Training

PREVIEWS = 16


def shipping_pipeline(
    pipeline: StableDiffusionPipeline, start_distribution: StartDistribution
) -> OffsetStableDiffusionPipeline:
    """The pipeline that ships, over the same modules."""
    components = {**pipeline.components, "start_distribution": start_distribution}
    return OffsetStableDiffusionPipeline(**components, requires_safety_checker=False)


@contextmanager
def averaged_weights(training: Training) -> Iterator[None]:
    """The EMA weights in place of the trained ones, in evaluation mode, for the length of the block."""
    unet = training.pipeline.unet
    if training.average:
        training.average.store(training.weights)
        training.average.copy_to(training.weights)
    unet.eval()
    try:
        yield
    finally:
        unet.train()
        if training.average:
            training.average.restore(training.weights)


def save_preview(
    training: Training,
    start_distribution: StartDistribution,
    catalogue: Catalogue,
    *,
    step: int,
    run: Path,
    settings: AuditConfig,
) -> None:
    """Writes samples/step_N.png. All processes may call it; the main one draws."""
    if training.accelerator.is_main_process:
        prompts, classes = prompts_of(catalogue, PREVIEWS)
        with averaged_weights(training):
            pipeline: Any = shipping_pipeline(training.pipeline, start_distribution)
            pipeline.to(training.accelerator.device)
            pictures = generate(
                pipeline,
                prompts,
                class_names=classes,
                start=start_of(start_distribution),
                sampler=Sampler(settings.scheduler, settings.steps),
                guidance_scale=settings.guidance_scale,
            )
        folder = run / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(pictures, captions=prompts, title=f"step {step}").save(folder / f"step_{step}.png")
    training.accelerator.wait_for_everyone()
