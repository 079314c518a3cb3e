"""Layouts by guided attention: in a box, its concept's words weigh more in every cross-attention layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..text import tokenizers
from .attention_maps import attention_logits, cross_attentions
from .concept_tokens import concept_positions
from .first_pass import expanded, plain_unet
from .layouts import Box, Layout

LEAST_SIGNAL = 2**-24  # of a schedule that ends at zero SNR, as diffusers' sigma-based schedulers floor it

Strength = Callable[[Any, int, float], float]
Mask = Callable[[Box, int, int], Tensor]


@dataclass(frozen=True)
class Soft:
    """Adds w * s(step) * max(sim) * mask to the attention logits of each concept's words.

    weight: w; s falls from 1 at the first step to 0 after the last, in equal parts; mask: a Gaussian bump
    over the concept's box, 1 at its centre, its deviations `spread` of the box's sides; max(sim): the largest
    logit of the layer, for each picture its own. Source: METHODS 4.
    """

    layout: Layout
    weight: float = 1.0
    spread: float = 0.5

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        if not self.spread > 0:
            raise ValueError(f"spread must be positive, got {self.spread}")

    def on(self, pipeline: Any, prompt: str) -> AbstractContextManager[None]:
        """Guides every call of the pipeline inside the block, all of whose pictures are of this prompt.

        Only the rows with the prompt are guided, not the negative prompt's. The layers keep their own
        processors, whatever they are: what is added comes as an attention mask.
        Raises ValueError on entering the block for a concept that does not stand whole in the prompt, and in
        a call for boxes outside the picture.
        """

        def strength(scheduler: Any, index: int, timestep: float) -> float:
            return self.weight * (1 - index / len(scheduler.timesteps))

        def mask(box: Box, height: int, width: int) -> Tensor:
            return bump(box, height, width, spread=self.spread)

        return _guided(pipeline, prompt, self.layout, strength, mask)


@dataclass(frozen=True)
class Paint:
    """Paint-with-words: adds w * log(1 + sigma) * max(Q K^T) * mask to the logits of each concept's words.

    weight: w; sigma: the noise's deviation over the picture's at this step; mask: 1 in the concept's box;
    the maximum is that of the layer, for each picture its own. Source: METHODS 4.
    """

    layout: Layout
    weight: float = 0.4

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def on(self, pipeline: Any, prompt: str) -> AbstractContextManager[None]:
        """As `Soft.on`."""

        def strength(scheduler: Any, index: int, timestep: float) -> float:
            return self.weight * math.log1p(noise_deviation(scheduler, index, timestep))

        return _guided(pipeline, prompt, self.layout, strength, filled)


def bump(box: Box, height: int, width: int, *, spread: float = 0.5) -> Tensor:
    """A Gaussian over a box in fractions, 1 at its centre, at the middles of (height, width) cells.

    spread: its deviation along each side, as a share of that side.
    """
    x0, y0, x1, y1 = box
    x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    across = ((x - (x0 + x1) / 2) / (spread * (x1 - x0))).square()
    down = ((y - (y0 + y1) / 2) / (spread * (y1 - y0))).square()
    return torch.exp(-(down[:, None] + across) / 2)


def filled(box: Box, height: int, width: int) -> Tensor:
    """The share of each of (height, width) cells that a box in fractions covers."""
    x0, y0, x1, y1 = box
    across, down = _overlap(x0, x1, width), _overlap(y0, y1, height)
    return down[:, None] * across


def _overlap(low: float, high: float, cells: int) -> Tensor:
    """How much of each cell of [0, 1] lies between low and high, (cells,)."""
    edges = torch.arange(cells + 1) / cells
    return ((edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)) * cells).clamp(min=0)


def noise_deviation(scheduler: Any, index: int, timestep: float) -> float:
    """sigma of a scheduler's step: the noise's standard deviation over the weight of the picture."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None:
        return float(sigmas[index])
    a = max(float(scheduler.alphas_cumprod[int(timestep)]), LEAST_SIGNAL)
    return math.sqrt((1 - a) / a)


def is_guided(pipeline: Any) -> bool:
    """Whether a layout guides the pipeline's UNet at this moment."""
    hooks = plain_unet(pipeline)._forward_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), _Guidance) for hook in hooks)


@contextmanager
def _guided(pipeline: Any, prompt: str, layout: Layout, strength: Strength, mask: Mask) -> Iterator[None]:
    """Guides every pass of the pipeline's UNet inside the block."""
    words = words_in(pipeline, prompt, [concept for concept, _ in layout.boxes])
    guidance = _Guidance(pipeline, layout, words, strength, mask)
    unet = plain_unet(pipeline)
    with ExitStack() as hooks:
        hooks.callback(unet.register_forward_pre_hook(guidance.begin, with_kwargs=True).remove)
        for name, factor in cross_attentions(unet).items():
            add, layer = partial(guidance.add, factor), unet.get_submodule(name)
            hooks.callback(layer.register_forward_pre_hook(add, with_kwargs=True).remove)
        yield


class _Guidance:
    """What is added to the logits of each layer, for the step that the UNet is at.

    strength: of a scheduler, the index of its step and the timestep; mask: of a box, height and width.
    """

    def __init__(
        self, pipeline: Any, layout: Layout, positions: list[list[int]], strength: Strength, mask: Mask
    ) -> None:
        self.pipeline, self.layout, self.positions = pipeline, layout, positions
        self.strength, self.mask = strength, mask
        self.now, self.size = 0.0, (0, 0)
        self.masks: dict[tuple[int, ...], Tensor] = {}

    def begin(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the UNet: reads the step and the size of the latents."""
        given = dict(zip(("sample", "timestep"), args, strict=False)) | kwargs
        timestep = float(torch.as_tensor(given["timestep"]).flatten()[0])
        scheduler = self.pipeline.scheduler
        index = int((scheduler.timesteps.cpu() - timestep).abs().argmin())
        self.now, self.size = self.strength(scheduler, index, timestep), given["sample"].shape[-2:]

    def add(self, factor: int, attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a layer whose cells cover factor latents a side: adds to its attention mask."""
        if self.now == 0:
            return None
        names = ("hidden_states", "encoder_hidden_states", "attention_mask")
        given = dict(zip(names, args, strict=False)) | kwargs
        hidden, text = given["hidden_states"], given["encoder_hidden_states"]
        text = text[0] if isinstance(text, tuple) else text  # beside an image prompt adapter's own
        level = self.now * largest_logit(attn, hidden, text)
        if getattr(self.pipeline, "do_classifier_free_guidance", False):
            level[: len(level) // 2] = 0  # the negative prompt's rows come first
        mask = self._mask(factor, text.shape[1]).to(hidden.device)
        added, own = (level[:, None, None] * mask).to(hidden.dtype), given.get("attention_mask")
        return (), given | {"attention_mask": added if own is None else own + added}

    def _mask(self, factor: int, tokens: int) -> Tensor:
        """(cells, tokens): each concept's mask under its words, the largest where it has several boxes."""
        height, width = self.size
        key = (height, width, factor, tokens)
        if key not in self.masks:
            size = (-(-height // factor), -(-width // factor))
            found = torch.zeros(size[0] * size[1], tokens)
            pixels = self.pipeline.vae_scale_factor
            boxes = self.layout.fractions((height, width), pixels_per_latent=pixels)
            for own, (_, box) in zip(self.positions, boxes, strict=True):
                found[:, own] = torch.maximum(found[:, own], self.mask(box, *size).flatten()[:, None])
            self.masks[key] = found
        return self.masks[key]


def largest_logit(attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """max of Q K^T / sqrt(d) over heads, cells and tokens, (B,) float32: for each picture its own.

    hidden_states: (B, cells, D); encoder_hidden_states: (B, tokens, E), as the layer is called with them.
    """
    return attention_logits(attn, hidden_states, encoder_hidden_states).amax(dim=(1, 2, 3))


def words_in(pipeline: Any, prompt: Any, concepts: Sequence[str]) -> list[list[int]]:
    """For each concept the positions of its tokens in a prompt, learnt tokens spelled out as it does.

    Raises ValueError on a prompt that is not one text, and as `concept_positions`.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt must be one text, to find the concepts' words in, got {prompt!r}")
    tokenizer = tokenizers(pipeline)[0]
    said = [expanded(pipeline, text, tokenizer) for text in (prompt, *concepts)]
    return concept_positions(tokenizer, said[0], said[1:])


def _check_weight(weight: float) -> None:
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be 0 or more, and finite, got {weight}")
