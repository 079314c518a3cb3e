"""What a UNet's cross-attention looks at: maps read beside its own processors, which are left as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

QUARTER = 4


def cross_attentions(unet: nn.Module) -> dict[str, int]:
    """The cross-attention layers in the order they run, each with the latents a side that a cell covers.

    By the architecture: every downsampler before a layer doubles them, every upsampler halves them.
    """
    found: dict[str, int] = {}
    factor = 1
    for part, sampler in (("down_blocks", "downsamplers"), ("mid_block", None), ("up_blocks", "upsamplers")):
        blocks = getattr(unet, part, None)
        if blocks is None:
            continue
        named = [(part, blocks)] if sampler is None else [(f"{part}.{i}", b) for i, b in enumerate(blocks)]
        for name, block in named:
            for inner, module in block.named_modules():
                if isinstance(module, Attention) and module.is_cross_attention:
                    found[f"{name}.{inner}"] = factor
            if sampler is not None and getattr(block, sampler, None) is not None:
                factor = factor * 2 if part == "down_blocks" else factor // 2
    return found


def find_layer(unet: nn.Module, layer: str | None = None) -> tuple[str, int]:
    """A cross-attention layer and the latents a side that a cell of its map covers (a block's side).

    layer: its name; None: on the way down at a quarter of the latents' sides, of the last attention there
    the first layer: `down_blocks.2.attentions.1.transformer_blocks.0.attn2` in Stable Diffusion 1, 2 and XL.
    Raises ValueError on a name that is no cross-attention layer, and on None where none has that resolution.
    """
    layers = cross_attentions(unet)
    if layer is not None:
        if layer not in layers:
            near = get_close_matches(layer, layers, n=1) or list(layers)[:1]
            hint = f", for example {near[0]}" if near else ""
            raise ValueError(f"layer must be a cross-attention layer of the UNet{hint}, got {layer!r}")
        return layer, layers[layer]
    for part in ("down_blocks.", "mid_block.", "up_blocks."):
        quarter = [name for name, factor in layers.items() if factor == QUARTER and name.startswith(part)]
        if quarter:
            last = quarter[-1].partition(".transformer_blocks.")[0]
            return next(name for name in quarter if name.startswith(last)), QUARTER
    firsts = {factor: name for name, factor in reversed(layers.items())}
    there = ", ".join(f"{name} (1/{factor})" for factor, name in sorted(firsts.items())) or "none at all"
    raise ValueError(
        f"layer must be named where no cross-attention runs at 1/{QUARTER} of the latents, "
        f"got a UNet with {there}"
    )


class _Reached(Exception):
    """The captured layer has been read and nothing after it is wanted."""


@contextmanager
def capture_maps(unet: nn.Module, layer: str, *, stop: bool = False) -> Iterator[list[Tensor]]:
    """A list that each pass of the UNet inside the block adds a map to: (B, cells, tokens) float32.

    Softmax over the tokens, mean over the heads; cells row by row. The layer's own processor runs as ever, so
    the UNet's output keeps its bits. stop: a pass ends at the layer, and with it the block; what follows the
    pass inside the block is not run.
    """
    maps: list[Tensor] = []

    def look(attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(("hidden_states", "encoder_hidden_states", "attention_mask"), args, strict=False))
        given |= kwargs
        maps.append(
            attention_map(
                attn, given["hidden_states"], given["encoder_hidden_states"], given.get("attention_mask")
            )
        )
        if stop:
            raise _Reached

    handle = unet.get_submodule(layer).register_forward_pre_hook(look, with_kwargs=True)
    try:
        with suppress(_Reached):
            yield maps
    finally:
        handle.remove()


@contextmanager
def stopping_before(unet: nn.Module, layer: str) -> Iterator[None]:
    """A pass of the UNet inside the block ends where the layer is called, and with it the block."""

    def stop(*call: Any) -> None:
        raise _Reached

    handle = unet.get_submodule(layer).register_forward_pre_hook(stop)
    try:
        with suppress(_Reached):
            yield
    finally:
        handle.remove()


def attention_map(
    attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """softmax(Q K^T / sqrt(d)) of an attention layer, (B, cells, tokens) float32, mean over the heads.

    hidden_states: (B, cells, D); encoder_hidden_states: (B, tokens, E), as the layer is called with them;
    attention_mask: what is added to the logits of the tokens, (B, 1, tokens).
    """
    if isinstance(encoder_hidden_states, tuple):  # beside an image prompt adapter's own
        encoder_hidden_states = encoder_hidden_states[0]
    logits = attention_logits(attn, hidden_states, encoder_hidden_states)
    if attention_mask is not None:
        logits = logits + attention_mask[:, None]
    return logits.softmax(dim=-1).mean(dim=1)


def attention_logits(attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """Q K^T / sqrt(d) of an attention layer, (B, heads, cells, tokens) float32.

    hidden_states: (B, cells, D); encoder_hidden_states: (B, tokens, E), as the layer is called with them.
    """
    if attn.group_norm is not None:
        hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
    if attn.norm_cross:
        encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
    query, key = (
        x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for x in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states))
    )
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    return attn.scale * (query.float() @ key.float().transpose(-1, -2))
