"""onbrand: fine-tune Stable Diffusion on a product catalogue and keep the catalogue's look."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AuditReport": "evaluation",
    "OffsetStableDiffusionControlNetPipeline": "inference",
    "OffsetStableDiffusionImg2ImgPipeline": "inference",
    "OffsetStableDiffusionInpaintPipeline": "inference",
    "OffsetStableDiffusionPipeline": "inference",
    "OffsetStableDiffusionXLControlNetPipeline": "inference",
    "OffsetStableDiffusionXLImg2ImgPipeline": "inference",
    "OffsetStableDiffusionXLInpaintPipeline": "inference",
    "OffsetStableDiffusionXLPipeline": "inference",
    "StartDistribution": "pca",
    "audit": "evaluation",
    "load_pipeline": "inference",
    "offset_target": "pca",
    "start_latents": "inference",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'onbrand' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
