"""From weights, a start distribution and initial noise to pictures."""

from .load import load_pipeline
from .mixin import OffsetPipelineMixin
from .noise import Initializer, draw_noise
from .pipelines import (
    OffsetStableDiffusionControlNetPipeline,
    OffsetStableDiffusionPipeline,
    OffsetStableDiffusionXLControlNetPipeline,
    OffsetStableDiffusionXLPipeline,
)
from .start import start_latents

__all__ = [
    "Initializer",
    "OffsetPipelineMixin",
    "OffsetStableDiffusionControlNetPipeline",
    "OffsetStableDiffusionPipeline",
    "OffsetStableDiffusionXLControlNetPipeline",
    "OffsetStableDiffusionXLPipeline",
    "draw_noise",
    "load_pipeline",
    "start_latents",
]
