"""A checkpoint as one safetensors file under the names of the original code, as most other tools read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..inference.original_names import text_model_name
from ..whole_file import whole
from .ldm_names import family, open_clip_name, unet_blocks, unet_name, vae_name

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
# empty tensors by which readers tell an XL model that predicts v, and one whose terminal SNR is zero
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"


def single_file_tensors(pipeline: Any) -> dict[str, Tensor]:
    """The tensors of a Stable Diffusion 1, 2 or XL pipeline by their original names.

    Raises ValueError on a network that has no counterpart in the original code, and on a ControlNet.
    """
    if hasattr(pipeline, "controlnet"):
        raise ValueError(f"single file must hold no ControlNet, got {type(pipeline).__name__}")
    tensors: dict[str, Tensor] = {}
    for name, tensor in _named(pipeline):
        if name in tensors:
            raise ValueError(f"tensors must have names of their own, got {name} twice")
        tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def save_single_file(
    pipeline: Any,
    file: Path,
    *,
    metadata: Mapping[str, str] = MappingProxyType({}),
    dtype: torch.dtype | None = None,
) -> None:
    """Writes `single_file_tensors` beside the place of `file`, then renames it.

    metadata: of the header. dtype: of the floating-point tensors; None keeps each network's own.
    """
    tensors = single_file_tensors(pipeline)
    if dtype is not None:
        tensors = {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors.items()}
    # tensors that share their memory, as tied weights do, are refused by safetensors
    seen: set[int] = set()
    for key, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[key] = tensor.clone()
        seen.add(tensor.data_ptr())
    with whole(file) as beside:
        save_file(tensors, beside, metadata={"format": "pt", **metadata})


def _named(pipeline: Any) -> Iterator[tuple[str, Tensor]]:
    kind = family(pipeline)
    yield from ((UNET + name, tensor) for name, tensor in _unet(pipeline.unet))
    yield from ((VAE + name, tensor) for name, tensor in _vae(pipeline.vae))
    if kind == "sdxl":
        yield from ((XL_CLIP + name, tensor) for name, tensor in _clip(pipeline.text_encoder))
        yield from ((XL_OPEN_CLIP + name, tensor) for name, tensor in _open_clip(pipeline.text_encoder_2))
        if pipeline.scheduler.config.prediction_type == "v_prediction":
            yield V_PREDICTION, torch.tensor([])
        if getattr(pipeline.scheduler.config, "rescale_betas_zero_snr", False):
            yield ZERO_SNR, torch.tensor([])
    elif kind == "sd2":
        yield from ((OPEN_CLIP + name, tensor) for name, tensor in _with_last_layer(pipeline.text_encoder))
    else:
        yield from ((CLIP + name, tensor) for name, tensor in _clip(pipeline.text_encoder))


def _unet(unet: Any) -> Iterator[tuple[str, Tensor]]:
    blocks = unet_blocks(unet)
    for name, tensor in unet.state_dict().items():
        module, _, kind = name.rpartition(".")
        yield f"{unet_name(module, blocks)}.{kind}", tensor


def _vae(vae: Any) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in vae.state_dict().items():
        module, _, kind = name.rpartition(".")
        original = vae_name(module, levels=len(vae.config.block_out_channels))
        # its attention was made of 1 x 1 convolutions
        is_matrix = ".attn_1." in original and tensor.ndim == 2
        yield f"{original}.{kind}", tensor[:, :, None, None] if is_matrix else tensor


def _clip(encoder: Any) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in encoder.state_dict().items():
        yield text_model_name(name), tensor


def _open_clip(encoder: Any) -> Iterator[tuple[str, Tensor]]:
    """OpenCLIP keeps q, k and v in one tensor, and projects from the left."""
    apart: dict[str, dict[str, Tensor]] = {}
    for name, tensor in encoder.state_dict().items():
        if name.endswith("position_ids"):
            continue
        original = open_clip_name(text_model_name(name))
        layer, is_attention, part = original.rpartition(".attn.")
        letter, _, kind = part.partition(".")
        if is_attention and letter in ("q", "k", "v"):
            apart.setdefault(f"{layer}.attn.in_proj_{kind}", {})[letter] = tensor
        else:
            yield original, tensor.T if original == "text_projection" else tensor
    for original, parts in apart.items():
        yield original, torch.cat([parts[letter] for letter in "qkv"])


def _with_last_layer(encoder: Any) -> Iterator[tuple[str, Tensor]]:
    """Stable Diffusion 2 reads the last but one layer of its encoder, and diffusers' copy ends there.

    Readers of the original count the layers, so the last one is written as a copy that nothing looks at.
    """
    last = encoder.config.num_hidden_layers - 1
    for name, tensor in _open_clip(encoder):
        yield name, tensor
        if name.startswith(f"transformer.resblocks.{last}."):
            yield name.replace(f".{last}.", f".{last + 1}.", 1), tensor.clone()
