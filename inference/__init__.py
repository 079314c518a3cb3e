"""From weights, a start distribution and initial noise to pictures."""

from . import couplings
from .aggregation.pipeline import AggregatedPipeline
from .contrastive import ContrastiveNoise
from .learned import LearnedCoupling
from .load import load_pipeline
from .mixin import OffsetPipelineMixin
from .noise import Initializer, draw_noise
from .pipelines import (
    OffsetStableDiffusionControlNetPipeline,
    OffsetStableDiffusionImg2ImgPipeline,
    OffsetStableDiffusionInpaintPipeline,
    OffsetStableDiffusionPipeline,
    OffsetStableDiffusionXLControlNetPipeline,
    OffsetStableDiffusionXLImg2ImgPipeline,
    OffsetStableDiffusionXLInpaintPipeline,
    OffsetStableDiffusionXLPipeline,
)
from .start import NO_OP_BELOW, start_latents, start_share
from .tickets.collection import TicketCollection
from .tickets.guidance import Paint, Soft
from .tickets.swap import Swap

__all__ = [
    "NO_OP_BELOW",
    "AggregatedPipeline",
    "ContrastiveNoise",
    "Initializer",
    "LearnedCoupling",
    "OffsetPipelineMixin",
    "OffsetStableDiffusionControlNetPipeline",
    "OffsetStableDiffusionImg2ImgPipeline",
    "OffsetStableDiffusionInpaintPipeline",
    "OffsetStableDiffusionPipeline",
    "OffsetStableDiffusionXLControlNetPipeline",
    "OffsetStableDiffusionXLImg2ImgPipeline",
    "OffsetStableDiffusionXLInpaintPipeline",
    "OffsetStableDiffusionXLPipeline",
    "Paint",
    "Soft",
    "Swap",
    "TicketCollection",
    "couplings",
    "draw_noise",
    "load_pipeline",
    "start_latents",
    "start_share",
]
