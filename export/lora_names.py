"""What the layers of a LoRA are called: diffusers' names, kohya's, and those of the original SDXL code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from ..inference.original_names import PREFIX, text_model_name
from .ldm_names import Blocks, unet_name

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
PARTS = {
    "down": (".lora.down.weight", ".lora_A.weight", ".lora_linear_layer.down.weight", ".lora_down.weight"),
    "up": (".lora.up.weight", ".lora_B.weight", ".lora_linear_layer.up.weight", ".lora_up.weight"),
    "magnitude": (".lora_magnitude_vector", ".lora_magnitude_vector.weight", ".dora_scale"),
    "alpha": (".alpha",),
}
TEXT_ENDINGS = {
    "down": ".lora_linear_layer.down.weight",
    "up": ".lora_linear_layer.up.weight",
    "magnitude": ".lora_magnitude_vector.weight",
}


def split_key(key: str) -> tuple[str, str]:
    """A tensor's layer and which part of its adapter it is: down, up, magnitude or alpha.

    Raises ValueError on a key that ends otherwise.
    """
    for part, several in PARTS.items():
        for ending in several:
            if key.endswith(ending):
                return key.removesuffix(ending), part
    endings = ", ".join(ending for several in PARTS.values() for ending in several)
    raise ValueError(f"LoRA key must end in one of {endings}, got {key!r}")


def group_layers(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The parts of each layer, sorted by its name, text encoders with their original `text_model.` prefix.

    Raises ValueError on an unknown key, a layer without down or up, and ranks that differ between them.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for key in sorted(tensors):
        layer, part = split_key(key)
        layers.setdefault(original_name(layer), {})[part] = tensors[key]
    for layer, parts in layers.items():
        if lost := {"down", "up"} - set(parts):
            raise ValueError(f"LoRA layer {layer} must have down and up weights, got no {sorted(lost)[0]}")
        if parts["down"].ndim < 2 or parts["up"].ndim < 2 or parts["down"].shape[0] != parts["up"].shape[1]:
            shapes = tuple(parts["down"].shape), tuple(parts["up"].shape)
            raise ValueError(
                f"LoRA layer {layer} must have one rank, got {shapes[0]} down and {shapes[1]} up"
            )
    return layers


def original_name(layer: str) -> str:
    """A layer `component.module` with a text encoder's module by its original name; any other as it is."""
    component, _, module = layer.partition(".")
    return f"{component}.{text_model_name(module)}" if component in COMPONENTS[1:] else layer


def diffusers_layers(state: Mapping[str, Tensor], *, text_encoder: bool) -> dict[str, Tensor]:
    """peft's state of one network's adapter as diffusers' `save_lora_weights` is to be given it.

    All layers in one spelling: of a file that mixes peft's with its own, diffusers loads peft's alone. A text
    encoder's modules have their original names, `text_model.encoder...`: diffusers takes the prefix away
    where the encoder has none, older readers need it. Its magnitudes end in `.weight`: without it
    transformers 5 leaves them out.
    """
    layers = {}
    for key in sorted(state):
        module, part = split_key(key)
        if text_encoder:
            layers[f"{text_model_name(module)}{TEXT_ENDINGS[part]}"] = state[key]
        else:
            layers[f"{module}{PARTS[part][0]}"] = state[key]
    return layers


def portable_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter's settings with module names that fit both spellings of a text encoder, in a fixed order.

    peft compares names by their ends, and diffusers hands these on as they are: without `text_model.` they
    match with and without the prefix, with it only where the encoder has it.
    """
    portable = dict(metadata)
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = portable.get(key) or {}
        portable[key] = {name.removeprefix(PREFIX): pattern[name] for name in sorted(pattern)}
    if not isinstance(targets := portable.get("target_modules"), str | None):
        portable["target_modules"] = sorted({name.removeprefix(PREFIX) for name in targets})
    return portable


def kohya_name(layer: str, *, sdxl: bool, blocks: Blocks | None = None) -> str:
    """A layer `component.module` as kohya's scripts name it.

    blocks: the UNet's modules are called as in the original SDXL code; if None, as diffusers calls them.
    """
    component, _, module = layer.partition(".")
    if component == "unet":
        prefix, module = "lora_unet", module if blocks is None else unet_name(module, blocks)
    else:
        prefix = {"text_encoder": "lora_te1" if sdxl else "lora_te", "text_encoder_2": "lora_te2"}[component]
    return f"{prefix}_{module.replace('.', '_')}"


def spellings(layer: str, *, sdxl: bool, blocks: Blocks | None = None) -> Iterator[str]:
    """All names under which a file may hold the layer `component.module`.

    blocks: of SDXL's UNet, whose modules may then also be called as in the original code.
    """
    yield layer
    yield kohya_name(layer, sdxl=sdxl)
    if layer.startswith("unet.") and blocks is not None:
        with suppress(ValueError):  # what was added to a UNet, such as an IP-Adapter's, has no original name
            yield kohya_name(layer, sdxl=sdxl, blocks=blocks)
