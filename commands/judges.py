"""The networks by path that look at pictures: descriptors, and scorers of a picture with its caption."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .console import best_device

if TYPE_CHECKING:
    from ..evaluation.agreement import Scorer
    from ..evaluation.similarity import CLIP, SSCD


def load_descriptor(source: str) -> SSCD | CLIP:
    """An SSCD descriptor if source is a file, else a CLIP model by its folder or hub id.

    Raises ValueError on what is neither.
    """
    from ..evaluation.similarity import load_clip, load_sscd

    device = str(best_device())
    return (load_sscd if Path(source).is_file() else load_clip)(source, device=device)


def load_scorer(source: str) -> Scorer:
    """A scorer by a CLIP model's folder or hub id; Raises ValueError on what is none."""
    from ..evaluation.agreement import clip_agreement
    from ..evaluation.similarity import load_clip

    return clip_agreement(load_clip(source, device=str(best_device())))
