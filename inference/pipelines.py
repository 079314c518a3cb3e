"""diffusers' pipelines with an optional start distribution."""

from diffusers import (
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)

from .mixin import OffsetPipelineMixin


class OffsetStableDiffusionPipeline(OffsetPipelineMixin, StableDiffusionPipeline):
    """diffusers' StableDiffusionPipeline with an optional start distribution."""


class OffsetStableDiffusionXLPipeline(OffsetPipelineMixin, StableDiffusionXLPipeline):
    """diffusers' StableDiffusionXLPipeline with an optional start distribution."""


class OffsetStableDiffusionControlNetPipeline(OffsetPipelineMixin, StableDiffusionControlNetPipeline):
    """diffusers' StableDiffusionControlNetPipeline with an optional start distribution."""


class OffsetStableDiffusionXLControlNetPipeline(OffsetPipelineMixin, StableDiffusionXLControlNetPipeline):
    """diffusers' StableDiffusionXLControlNetPipeline with an optional start distribution."""
