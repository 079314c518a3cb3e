"""Captions -> what the denoiser reads of them: token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..inference.text import tokenize


class TextEmbeds(NamedTuple):
    """Embeddings of a batch of captions: hidden (B, L, D) and, for SDXL, pooled (B, P)."""

    hidden: Tensor
    pooled: Tensor | None = None

    def zeroed(self, where: Tensor) -> TextEmbeds:
        """With zeros for the captions where (B,) is true."""
        hidden = self.hidden.masked_fill(where[:, None, None], 0)
        return TextEmbeds(hidden, None if self.pooled is None else self.pooled.masked_fill(where[:, None], 0))


def embed(encoders: Sequence[Any], input_ids: Tensor) -> TextEmbeds:
    """Embeddings of token ids (B, encoders, L), as the pipelines of diffusers compute them.

    One encoder: its last hidden states. Two: the last but one of each, side by side, and the projection of
    the second.
    """
    if len(encoders) == 1:
        return TextEmbeds(encoders[0](input_ids[:, 0])[0])
    outputs = [encoder(input_ids[:, i], output_hidden_states=True) for i, encoder in enumerate(encoders)]
    hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return TextEmbeds(hidden, outputs[-1][0])


class TokenIds:
    """Captions as token ids, encoded in every step; row None is the empty caption."""

    def __init__(self, pipeline: Any, captions: Sequence[str]) -> None:
        *rows, self._empty = tokenize(pipeline, [*captions, ""])
        self._rows = rows

    def __getitem__(self, row: int | None) -> dict[str, Tensor]:
        return {"input_ids": self._empty if row is None else self._rows[row]}
