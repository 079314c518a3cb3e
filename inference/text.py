"""Prompts -> token ids -> pooled embeddings, as a pipeline's own encoders make them."""

import copy
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
def pooled_text(pipeline: Any, prompts: Sequence[str], *, full_precision: bool = False) -> Tensor:
    """One embedding a prompt, (B, E) float32 on the CPU, as `pool` makes them.

    full_precision: computed in float32 whatever the encoder was cast to.
    Raises ValueError on a pipeline without its text encoder.
    """
    encoder = text_encoders(pipeline)[-1]
    if encoder is None:
        raise ValueError("text_encoder must be there for a start that depends on the text, got None")
    if full_precision and encoder.dtype != torch.float32:
        encoder = copy.deepcopy(encoder).float()
    # a model that is offloaded is moved to where it runs when it is called
    device = pipeline._execution_device if encoder.device.type == "meta" else encoder.device
    return pool(encoder, tokenize(pipeline, prompts)[:, -1].to(device)).cpu()


def pool(encoder: Any, input_ids: Tensor) -> Tensor:
    """A text encoder's pooled output (B, E), float32, for the token ids (B, L) of its own tokenizer.

    Of SDXL's last encoder the projection, else the hidden state of the end-of-text token.
    """
    output = encoder(input_ids)
    return (output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output).float()
