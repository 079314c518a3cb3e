"""From weights, a start distribution and initial noise to pictures."""

from .noise import Initializer, draw_noise
from .pipeline import OffsetPipelineMixin, OffsetStableDiffusionPipeline, load_pipeline
from .start import start_latents

__all__ = [
    "Initializer",
    "OffsetPipelineMixin",
    "OffsetStableDiffusionPipeline",
    "draw_noise",
    "load_pipeline",
    "start_latents",
]
