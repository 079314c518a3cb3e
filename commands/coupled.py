"""How the pictures of a gallery hang together: the initializer that a request names."""

from __future__ import annotations

from typing import Any

import torch

from ..inference import couplings
from ..inference.contrastive import ContrastiveNoise
from ..inference.learned import LearnedCoupling
from ..inference.noise import Initializer


def initializer_of(coupling: str | None, *, contrastive: int, count: int) -> Initializer | None:
    """The coupling by its name, or by the file of a learned one, with so many contrastive steps on top.

    None where the pictures are independent, each from its own seed.
    Raises ValueError, naming the option, on a name or file that is none and a coupling of another count.
    """
    if coupling is None and not contrastive:
        return None
    try:
        noise: Any = couplings.Independent()
        if coupling is not None:
            is_file = coupling.endswith(".safetensors")
            noise = LearnedCoupling.load(coupling) if is_file else couplings.by_name(coupling)
        noise.draw(count, (1, 2, 2), torch.Generator())
    except (ValueError, OSError) as error:
        raise ValueError(f"--coupling: {error}") from error
    return ContrastiveNoise(noise, steps=contrastive) if contrastive else noise
