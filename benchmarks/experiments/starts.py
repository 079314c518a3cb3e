"""What the pictures of a cell start from, as scaled latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from onbrand.assets.base import encode
from onbrand.data.studio import Product
from onbrand.inference.text import pooled_text
from onbrand.pca import StartDistribution
from onbrand.train.prepare import prepare, split_catalogue
from torch import Tensor

from .catalogue import real_pictures
from .trainings import config_of

# start -> the family it is fitted as, and whether it is drawn from or expected
FITTED = {
    "class mean": ((), "expected"),
    "another's mean": ((), "expected"),
    "PCA-1": (("start.components=1",), "sample"),
    "PCA-3": (("start.components=3",), "sample"),
    "PCA-8": (("start.components=8",), "sample"),
    "text PCA-8": (("start.family=text", "start.components=8"), "expected"),
    "DCT 4 x 4": (("start.family=dct", "start.band=4"), "sample"),
}
STARTS = ("pure noise", "ground truth", *FITTED)
DRAW_SEED = 5


def x_start_of(
    start: str, products: list[Product], pipeline: Any, *, training: str, seed: int, work: Path
) -> Tensor | None:
    """(N, C, H, W) scaled latents for the products, None for pure noise."""
    if start == "pure noise":
        return None
    if start == "ground truth":
        return encode(pipeline.vae, np.stack([np.asarray(p) for p in real_pictures(work=work)]))
    overrides, how = FITTED[start]
    fitted = _fit(training, seed, overrides, pipeline, work=work)
    names = fitted.class_names
    shift = 1 if start == "another's mean" else 0
    class_ids = torch.tensor([(names.index(product.kind) + shift) % len(names) for product in products])
    text = pooled_text(pipeline, [product.words() for product in products]) if fitted.needs_text else None
    if how == "expected":
        return fitted.expected(class_ids, text_embeds=text)
    return fitted.sample(class_ids, torch.Generator().manual_seed(DRAW_SEED), text_embeds=text)


def _fit(
    training: str, seed: int, overrides: tuple[str, ...], pipeline: Any, *, work: Path
) -> StartDistribution:
    """Fitted to the pictures that the training saw."""
    config = config_of(training, seed, work=work, start=overrides)
    parts = split_catalogue(config)
    cache_dir = Path(str(config.data.cache_dir))
    t_min = pipeline.scheduler.config.num_train_timesteps  # drawn from, not trained with
    prepared = prepare(config, pipeline, parts=parts, t_min=t_min, cache_dir=cache_dir, device="cpu")
    return prepared.start_distribution
