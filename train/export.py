"""The shipped checkpoint: a diffusers folder, written beside, reloaded, compared, then renamed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict

from ..inference.generate import generate
from ..inference.pipeline import OffsetStableDiffusionPipeline, load_pipeline
from ..pca import Sampler, StartDistribution
from .loop import Training
from .preview import shipping_pipeline

TOLERANCE = 1  # in 8-bit levels


def export_model(
    training: Training, start_distribution: StartDistribution, *, run: Path, prompt: str
) -> Path:
    """Writes the averaged weights and the start distribution to the run's `model/`, adapters merged.

    A LoRA run also keeps its adapters in `lora/`. Raises ValueError if the reloaded folder draws another
    picture.
    """
    pipeline = training.pipeline
    training.accelerator.unwrap_model(training.unet, keep_fp32_wrapper=False)  # autocast is not shipped
    if training.average:
        training.average.copy_to(training.weights)
    pipeline.unet.eval()
    if getattr(pipeline.unet, "peft_config", None):
        _save_lora(pipeline, run / "lora")
        pipeline.unet.fuse_lora()
        pipeline.unet.unload_lora()
    shipped = shipping_pipeline(pipeline, start_distribution).to("cpu")
    folder, beside = run / "model", run / "model.partial"
    shutil.rmtree(beside, ignore_errors=True)
    shipped.save_pretrained(beside)
    compare_reloaded(shipped, beside, prompt=prompt)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    return folder


def compare_reloaded(shipped: OffsetStableDiffusionPipeline, folder: Path, *, prompt: str) -> None:
    """Raises ValueError unless the folder, loaded anew, draws the same picture within 1/255."""
    name = shipped.start_distribution.class_names[0] if shipped.start_distribution else None
    before, after = (
        np.asarray(
            generate(pipeline, [prompt], class_names=[name], sampler=Sampler("DDIMScheduler", 20))[0],
            dtype=int,
        )
        for pipeline in (shipped, load_pipeline(folder))
    )
    worst = int(np.abs(before - after).max())
    if worst > TOLERANCE:
        raise ValueError(f"reloaded model must draw the same picture within {TOLERANCE}/255, got {worst}/255")


def _save_lora(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    beside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    StableDiffusionPipeline.save_lora_weights(
        beside,
        unet_lora_layers=layers,
        unet_lora_adapter_metadata=pipeline.unet.peft_config["default"].to_dict(),
    )
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
