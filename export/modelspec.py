"""Header fields of the ModelSpec standard, by which tools show what a safetensors file is."""

from __future__ import annotations

import hashlib
from typing import Any

from ..inference.size import picture_size
from .ldm_names import family

VERSION = "1.0.0"
IMPLEMENTATION = "https://github.com/CompVis/stable-diffusion"
XL_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def modelspec(pipeline: Any, *, title: str, date: str, lora: bool = False) -> dict[str, str]:
    """The fields that a fine-tuned Stable Diffusion 1, 2 or XL pipeline has, and its start's fingerprint.

    date: of the export, ISO 8601. lora: the file is a LoRA for this pipeline in kohya's format.
    Source: ModelSpec 1.0.0.
    """
    prediction = pipeline.scheduler.config.prediction_type
    height, width = picture_size(pipeline)
    return {
        "modelspec.sai_model_spec": VERSION,
        "modelspec.architecture": architecture(pipeline) + ("/lora" if lora else ""),
        "modelspec.implementation": XL_IMPLEMENTATION if family(pipeline) == "sdxl" else IMPLEMENTATION,
        "modelspec.title": title,
        "modelspec.date": date,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.prediction_type": PREDICTIONS.get(prediction, prediction),
        "modelspec.description": "fine-tuned with onbrand: made to start from its start distribution",
        "onbrand.start": start_fingerprint(pipeline),
    }


def architecture(pipeline: Any) -> str:
    """ModelSpec's name for what the pipeline is."""
    kind = family(pipeline)
    if kind != "sd2":
        return {"sd1": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base"}[kind]
    predicts_v = pipeline.scheduler.config.prediction_type == "v_prediction"
    return "stable-diffusion-v2-768-v" if predicts_v else "stable-diffusion-v2-512"


def start_fingerprint(pipeline: Any) -> str:
    """sha256 of the start distribution's tensors by name, "none" without one."""
    start = getattr(pipeline, "start_distribution", None)
    if start is None:
        return "none"
    digest = hashlib.sha256()
    for size in start.sizes:
        for name, tensor in sorted(start.at(*size).state_dict().items()):
            digest.update(f"{size} {name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
