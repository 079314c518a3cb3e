"""Prompts -> token ids -> pooled embeddings, as a pipeline's own encoders make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def text_encoders(pipeline: Any) -> list[Any]:
    """The text encoders of a pipeline: one, or two for SDXL."""
    second = getattr(pipeline, "text_encoder_2", None)
    return [pipeline.text_encoder] if second is None else [pipeline.text_encoder, second]


def tokenizers(pipeline: Any) -> list[Any]:
    """The tokenizers of a pipeline, one an encoder."""
    second = getattr(pipeline, "tokenizer_2", None)
    return [pipeline.tokenizer] if second is None else [pipeline.tokenizer, second]


def tokenize(pipeline: Any, captions: Sequence[str]) -> Tensor:
    """Token ids (N, encoders, L), padded and cut to the tokenizers' length."""
    ids = [
        tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        for tokenizer in tokenizers(pipeline)
    ]
    return torch.stack(ids, dim=1)


@torch.no_grad()
def pooled_text(pipeline: Any, prompts: Sequence[str]) -> Tensor:
    """One embedding a prompt, (B, E) float32 on the CPU, as `pool` makes them."""
    encoder = text_encoders(pipeline)[-1]
    return pool(encoder, tokenize(pipeline, prompts)[:, -1].to(encoder.device)).cpu()


def pool(encoder: Any, input_ids: Tensor) -> Tensor:
    """A text encoder's pooled output (B, E), float32, for the token ids (B, L) of its own tokenizer.

    Of SDXL's last encoder the projection, else the hidden state of the end-of-text token.
    """
    output = encoder(input_ids)
    return (output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output).float()
