"""What the modules of Stable Diffusion 1, 2 and XL are called in the code they were first trained with."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

RESNET_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.?(.*)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.?(.*)")
VAE_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.*)")
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
CLIP_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.*)\.(weight|bias)")
OPEN_CLIP_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    **{f"self_attn.{part}_proj": f"attn.{part}" for part in "qkv"},
}
OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}


class Blocks(NamedTuple):
    """How a UNet is built, as far as the original numbering of its blocks depends on it.

    layers: resnets of a down block. attentions: of each up block, whether it has them.
    """

    layers: int
    attentions: tuple[bool, ...]


SDXL_BLOCKS = Blocks(2, (True, True, False))


def family(pipeline: Any) -> str:
    """sd1, sd2 (text from OpenCLIP, linear projections) or sdxl (both text encoders)."""
    if getattr(pipeline, "text_encoder_2", None) is not None:
        return "sdxl"
    return "sd2" if pipeline.unet.config.use_linear_projection else "sd1"


def unet_blocks(unet: Any) -> Blocks:
    """How a diffusers UNet is built. Raises ValueError if its blocks have not all as many layers."""
    layers = unet.config.layers_per_block
    if not isinstance(layers, int) and len(set(layers)) == 1:
        layers = layers[0]
    if not isinstance(layers, int):
        raise ValueError(f"UNet's layers_per_block must be one number, got {layers}")
    return Blocks(layers, tuple("Attn" in kind for kind in unet.config.up_block_types))


def unet_name(module: str, blocks: Blocks = SDXL_BLOCKS) -> str:
    """A UNet's module (its diffusers name) as the original SDXL code has it: `input_blocks.4.1...`.

    Raises ValueError on a name of another form.
    """
    if module in OUTER_LAYERS:
        return OUTER_LAYERS[module]
    if found := MIDDLE.fullmatch(module):
        kind, number, rest = found[1], int(found[2]), found[3]
        middle = 1 + number if kind == "attentions" else 2 * number
        return f"middle_block.{middle}.{_inside(kind, rest)}"
    if found := BLOCK.fullmatch(module):
        side, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        first = block * (blocks.layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + blocks.layers + 1}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{first + blocks.layers}.{2 if blocks.attentions[block] else 1}.conv"
        place = f"input_blocks.{1 + first + number}" if side == "down" else f"output_blocks.{first + number}"
        return f"{place}.{int(kind == 'attentions')}.{_inside(kind, rest)}"
    raise ValueError(f"UNet layer must be a module of diffusers' UNet2DConditionModel, got {module!r}")


def _inside(kind: str, rest: str) -> str:
    return RESNET_LAYERS.get(rest, rest) if kind == "resnets" else rest


def vae_name(module: str, *, levels: int) -> str:
    """A diffusers AutoencoderKL's module under its original name; levels: its number of resolutions.

    Raises ValueError on a name of another form.
    """
    if module in ("quant_conv", "post_quant_conv"):
        return module
    side, _, inner = module.partition(".")
    if inner in ("conv_in", "conv_out", "conv_norm_out"):
        return f"{side}.{inner.replace('conv_norm_out', 'norm_out')}"
    if found := re.fullmatch(r"mid_block\.resnets\.(\d+)\.(.*)", inner):
        return f"{side}.mid.block_{int(found[1]) + 1}.{_in_vae(found[2])}"
    if found := re.fullmatch(r"mid_block\.attentions\.0\.(.*)", inner):
        if found[1] in VAE_ATTENTION:
            return f"{side}.mid.attn_1.{VAE_ATTENTION[found[1]]}"
    elif found := VAE_BLOCK.fullmatch(inner):
        direction, block, kind, number, rest = found[1], int(found[2]), found[3], found[4], found[5]
        # the decoder's are numbered from the last one
        place = f"{side}.{direction}.{block if direction == 'down' else levels - 1 - block}"
        if kind == "resnets":
            return f"{place}.block.{number}.{_in_vae(rest)}"
        return f"{place}.{kind.removesuffix('rs')}.{rest}"
    raise ValueError(f"VAE layer must be a module of diffusers' AutoencoderKL, got {module!r}")


def _in_vae(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")


def open_clip_name(name: str) -> str:
    """A transformers CLIP text tensor (with `text_model.`) under OpenCLIP's name, q, k and v still apart.

    Raises ValueError on a name of another form.
    """
    if name in OPEN_CLIP:
        return OPEN_CLIP[name]
    if found := CLIP_LAYER.fullmatch(name):
        number, module, kind = found.groups()
        if module in OPEN_CLIP_LAYERS:
            return f"transformer.resblocks.{number}.{OPEN_CLIP_LAYERS[module]}.{kind}"
    raise ValueError(f"text encoder tensor must be one of transformers' CLIPTextModel, got {name!r}")
