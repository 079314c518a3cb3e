"""diffusers' pipelines with an optional start distribution."""

from diffusers import (
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from .image_mixin import OffsetImageToImageMixin, OffsetInpaintMixin
from .mixin import OffsetPipelineMixin


class OffsetStableDiffusionPipeline(OffsetPipelineMixin, StableDiffusionPipeline):
    """diffusers' StableDiffusionPipeline with an optional start distribution."""


class OffsetStableDiffusionXLPipeline(OffsetPipelineMixin, StableDiffusionXLPipeline):
    """diffusers' StableDiffusionXLPipeline with an optional start distribution."""


class OffsetStableDiffusionControlNetPipeline(OffsetPipelineMixin, StableDiffusionControlNetPipeline):
    """diffusers' StableDiffusionControlNetPipeline with an optional start distribution."""


class OffsetStableDiffusionXLControlNetPipeline(OffsetPipelineMixin, StableDiffusionXLControlNetPipeline):
    """diffusers' StableDiffusionXLControlNetPipeline with an optional start distribution."""


class OffsetStableDiffusionImg2ImgPipeline(OffsetImageToImageMixin, StableDiffusionImg2ImgPipeline):
    """diffusers' StableDiffusionImg2ImgPipeline with an optional start distribution."""


class OffsetStableDiffusionInpaintPipeline(OffsetInpaintMixin, StableDiffusionInpaintPipeline):
    """diffusers' StableDiffusionInpaintPipeline with an optional start distribution."""


class OffsetStableDiffusionXLImg2ImgPipeline(OffsetImageToImageMixin, StableDiffusionXLImg2ImgPipeline):
    """diffusers' StableDiffusionXLImg2ImgPipeline with an optional start distribution."""


class OffsetStableDiffusionXLInpaintPipeline(OffsetInpaintMixin, StableDiffusionXLInpaintPipeline):
    """diffusers' StableDiffusionXLInpaintPipeline with an optional start distribution."""
