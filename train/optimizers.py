"""The optimizers a run can name, those of other libraries imported only when named."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from ..configs.schema import TrainConfig
from .denoiser import Denoiser

LIBRARIES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


def check_optimizer(name: str) -> None:
    """Raises ValueError if the library that an optimizer comes from is not installed."""
    library = LIBRARIES.get(name)
    if library and importlib.util.find_spec(library) is None:
        raise ValueError(
            f"train.optimizer must come from an installed library, got {name!r}: pip install {library}"
        )


def build_optimizer(denoiser: Denoiser, options: TrainConfig) -> torch.optim.Optimizer:
    """The named optimizer over all trained parameters, text encoders at their own rate if there is one."""
    rates = {
        False: options.learning_rate,
        True: options.text_encoder_learning_rate or options.learning_rate,
    }
    groups: list[dict[str, Any]] = []
    for is_text, rate in rates.items():
        own = [p for name, p in denoiser.trained() if name.startswith("text_encoder") == is_text]
        if own:
            groups.append({"params": own, "lr": rate})
    decay = options.weight_decay
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=decay, fused=True)
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, weight_decay=decay)
    library = importlib.import_module(LIBRARIES[options.optimizer])
    if options.optimizer == "adamw8bit":
        return library.optim.AdamW8bit(groups, lr=options.learning_rate, weight_decay=decay)
    # the settings its authors give for diffusion models
    return library.Prodigy(
        groups,
        lr=options.learning_rate,
        weight_decay=decay,
        decouple=True,
        use_bias_correction=True,
        safeguard_warmup=True,
    )
