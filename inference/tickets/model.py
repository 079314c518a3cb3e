"""Which model and start tickets were collected with: told by one map of a fixed noise and text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..text import tokenizers
from .attention_maps import capture_maps
from .blocks import seeded_noise
from .first_pass import conditioning, first_seen, normalised, plain_unet, start_of
from .setting import Setting

WORD = "product"
TOLERANCE = 0.05  # RMS on the scale of scores, [0, 1]: casts of one model agree within it


@torch.no_grad()
def ticket_fingerprint(pipeline: Any, setting: Setting) -> str:
    """The normalised map of one noise at the first step, averaged over the words of the prompt.

    WORD stands in the concepts' places. One line of numbers, row by row.
    """
    unet, device, text = plain_unet(pipeline), pipeline._execution_device, setting.prompt.replace("{}", WORD)
    size = (setting.latent_shape[1], setting.latent_shape[2])
    height, width = (side * setting.pixels_per_latent for side in size)
    call = conditioning(pipeline, [text], height=height, width=width)
    x_start = start_of(pipeline, [text], class_name=setting.class_name, start=setting.start, size=size)
    noise = seeded_noise([0], setting.latent_shape)
    latents, timestep = first_seen(pipeline.scheduler, setting.steps, x_start, noise)
    with capture_maps(unet, setting.layer, stop=True) as maps:
        unet(latents.to(device, unet.dtype), timestep.to(device), **call)
    tokenizer = tokenizers(pipeline)[0]
    words = len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    words = min(words, tokenizer.model_max_length - 2)
    level = normalised(maps[0][0, :, 1 : 1 + words].mean(dim=-1))
    return " ".join(f"{value:.4f}" for value in level.tolist())


def check_model(stored: str, found: str) -> None:
    """Refuses a fingerprint other than the tickets': of another model, or of other tickets to merge with.

    Raises ValueError with both numbers.
    """
    expected, actual = _numbers(stored), _numbers(found)
    if expected.shape != actual.shape:
        raise ValueError(
            f"model must give a test map of {len(expected)} cells as the tickets' did, got {len(actual)}"
        )
    difference = float((expected - actual).square().mean().sqrt())
    if not difference <= TOLERANCE:
        raise ValueError(
            "model and start must be those that the tickets were collected with: their test maps must agree "
            f"within an RMS of {TOLERANCE}, got {difference:.3f}"
        )


def _numbers(line: str) -> Tensor:
    return torch.tensor([float(value) for value in line.split()])
