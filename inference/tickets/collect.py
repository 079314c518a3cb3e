"""How noises score on concepts: the first step's cross-attention maps, and no more of the UNet than that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...pca.tensor_file import write_tensors
from ..text import tokenizers
from .attention_maps import capture_maps
from .blocks import seeded_noise
from .concept_tokens import concept_positions
from .first_pass import conditioning, expanded, first_seen, normalised, plain_unet, start_of
from .setting import Setting
from .shared_beginning import SharedBeginning, shares_beginning

Part = tuple[list[int], dict[str, tuple[str, ...]]]  # seeds; texts, each with the concepts it is read for
TEXTS_AT_ONCE = 64  # a part of the work: a batch of noises under this many texts


class Scores:
    """Scores of seeded noises under texts, by one pipeline: call with seeds and texts.

    folder: where finished parts are kept, and taken from by a later call with the same model and setting;
    advance(n): called after every n maps (a noise under a text). fingerprint: the model's.
    """

    def __init__(
        self,
        pipeline: Any,
        setting: Setting,
        *,
        fingerprint: str,
        batch_size: int,
        folder: Path | None = None,
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.pipeline, self.setting, self.advance = pipeline, setting, advance
        self.batch_size, self.folder, self.fingerprint = batch_size, folder, fingerprint
        self.unet = plain_unet(pipeline)
        self._texts: tuple[tuple[str, ...], Any] = ((), None)

    def parts(self, seeds: Sequence[int], texts: dict[str, tuple[str, ...]]) -> list[Part]:
        """Seeds and texts cut into calls; the same on any number of processes."""
        names = list(texts)
        return [
            (
                list(seeds[s : s + self.batch_size]),
                {name: texts[name] for name in names[t : t + TEXTS_AT_ONCE]},
            )
            for t in range(0, len(names), TEXTS_AT_ONCE)
            for s in range(0, len(seeds), self.batch_size)
        ]

    def __call__(self, part: Part) -> Tensor:
        """Scores (noises, texts, concepts a text, rows, columns) float32 in [0, 1], with 0 for no concept.

        Raises ValueError on concepts that do not stand whole in their text.
        """
        seeds, texts = part
        file = None if self.folder is None else self.folder / f"{self._key(seeds, texts)}.safetensors"
        if file is not None and (found := _read(file)) is not None:
            self.advance(len(seeds) * len(texts))
            return found
        scores = self._computed(seeds, texts)
        if file is not None:
            write_tensors({"scores": scores}, file)
        return scores

    def _key(self, seeds: list[int], texts: dict[str, tuple[str, ...]]) -> str:
        told = [asdict(self.setting), self.fingerprint, seeds, list(texts.items())]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    @torch.no_grad()
    def _computed(self, seeds: list[int], texts: dict[str, tuple[str, ...]]) -> Tensor:
        names = list(texts)
        if self._texts[0] != tuple(names):
            self._texts = (tuple(names), self._read_texts(texts))
        call, weights, x_start = self._texts[1]
        eps = seeded_noise(seeds, self.setting.latent_shape)
        per_text = x_start is not None and len(x_start) > 1
        first = None if per_text else self._latents(x_start, eps)
        shared = None
        if first is not None and shares_beginning(self.unet):
            rows = call["encoder_hidden_states"][:1].expand(len(eps), -1, -1)
            shared = SharedBeginning(self.unet, *first, rows)
        together = max(1, self.batch_size // len(seeds))
        scored = []
        for at in range(0, len(names), together):
            own = slice(at, min(at + together, len(names)))
            count = own.stop - own.start
            given = {key: self._rows(value, own, len(seeds)) for key, value in call.items()}
            if first is None:
                drawn = [self._latents(x, eps) for x in x_start[own]]
                latents, timestep = torch.cat([latents for latents, _ in drawn]), drawn[0][1]
            else:
                latents, timestep = first[0].repeat(count, 1, 1, 1), first[1]
            with (
                nullcontext() if shared is None else shared.replayed(count),
                capture_maps(self.unet, self.setting.layer, stop=True) as maps,
            ):
                self.unet(latents, timestep, **given)
            probabilities = maps[0].unflatten(0, (count, len(seeds)))
            scored.append(normalised(torch.einsum("pnlt,ptc->npcl", probabilities, weights[own])).cpu())
            self.advance(count * len(seeds))
        scores = torch.cat(scored, dim=1)
        if not torch.isfinite(scores).all():
            raise ValueError(
                f"attention maps must be finite, got nan or inf with a UNet in {self.unet.dtype}"
            )
        return scores.unflatten(-1, self.setting.grid)

    def _rows(self, value: Any, own: slice, noises: int) -> Any:
        """A text's conditioning once for each noise, texts one after the other."""
        if isinstance(value, dict):
            return {key: self._rows(inner, own, noises) for key, inner in value.items()}
        return value[own].repeat_interleave(noises, dim=0)

    def _latents(self, x_start: Tensor | None, eps: Tensor) -> tuple[Tensor, Tensor]:
        latents, timestep = first_seen(self.pipeline.scheduler, self.setting.steps, x_start, eps)
        device = self.pipeline._execution_device
        return latents.to(device, self.unet.dtype), timestep.to(device)

    def _read_texts(self, texts: dict[str, tuple[str, ...]]) -> tuple[dict[str, Any], Tensor, Tensor | None]:
        """Conditioning, each concept's share of each token (texts, tokens, concepts), x_start."""
        names, setting = list(texts), self.setting
        pixels = [side * setting.pixels_per_latent for side in setting.latent_shape[1:]]
        call = conditioning(self.pipeline, names, height=pixels[0], width=pixels[1])
        text = call["encoder_hidden_states"]
        weights = torch.zeros(len(names), text.shape[1], max(len(own) for own in texts.values()))
        tokenizer = tokenizers(self.pipeline)[0]
        for row, (name, concepts) in enumerate(texts.items()):
            said = [expanded(self.pipeline, words, tokenizer) for words in (name, *concepts)]
            for column, positions in enumerate(concept_positions(tokenizer, said[0], said[1:])):
                weights[row, positions, column] = 1 / len(positions)
        size = (setting.latent_shape[1], setting.latent_shape[2])
        x_start = start_of(
            self.pipeline, names, class_name=setting.class_name, start=setting.start, size=size
        )
        return call, weights.to(text.device), x_start


def _read(file: Path) -> Tensor | None:
    try:
        return load_file(file)["scores"]
    except (OSError, SafetensorError):
        return None
