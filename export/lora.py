"""LoRA files: read with their true scale, written as kohya's scripts write them, checked for a pipeline.

kohya's names are what A1111, ComfyUI, Forge and kohya's own scripts read. The UNet's are diffusers' for
Stable Diffusion 1 and 2 and the original code's for SDXL, as kohya's scripts train it: all of these tools,
and diffusers, read that form.

DoRA: magnitudes are one an output, and the rows of W + scale * up @ down are brought to them, as LyCORIS
does. ComfyUI and Forge divide such magnitudes by the norms of W alone, which is close; A1111 takes them for
one an input, which is wrong; diffusers leaves them out of a kohya file but reads them from its own. Where
this matters, the merged checkpoint is exact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .ldm_names import SDXL_BLOCKS, Blocks, family, unet_blocks
from .lora_names import COMPONENTS, group_layers, kohya_name, original_name, spellings
from .ordered import data_hash, save_ordered

FILE_NAME = "pytorch_lora_weights.safetensors"
ADAPTER_METADATA = "lora_adapter_metadata"
BASES = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


@dataclass(frozen=True)
class LoraLayer:
    """What a LoRA adds to one weight: scale * up @ down.

    down: (rank, in) or (rank, in, kernel, kernel). up: (out, rank) or (out, rank, 1, 1).
    magnitude: (out,), DoRA's: the norms of the sum's rows. None without DoRA.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def alpha(self) -> float:
        """What divided by the rank is the scale; for rsLoRA the trained alpha times the rank's root."""
        return self.scale * self.rank


def read_tensors(file: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A LoRA's tensors and header: a safetensors file, or a folder with diffusers' file name in it.

    Raises ValueError on a file that is missing, cut off or of another format.
    """
    file = Path(file) / FILE_NAME if Path(file).is_dir() else Path(file)
    if not file.is_file():
        raise ValueError(f"LoRA must be an existing file, got {file}")
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return tensors, opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"LoRA must be a whole safetensors file, got {file}: {error}") from error


def read_lora(file: str | Path, *, alpha: float | None = None) -> dict[str, LoraLayer]:
    """A LoRA in diffusers' format, by layer: `unet.down_blocks...`, `text_encoder.text_model.encoder...`.

    alpha: of a file whose header has no adapter metadata; its scale is alpha / rank.
    Raises ValueError on a file that is no safetensors, on unknown layers, ranks other than the header's, and
    where the scale is unknown.
    """
    tensors, header = read_tensors(file)
    metadata = _adapter_metadata(header)
    layers = {}
    for name, parts in group_layers(tensors).items():
        component = name.partition(".")[0]
        if component not in COMPONENTS:
            allowed = ", ".join(f"{c}." for c in COMPONENTS)
            raise ValueError(f"LoRA layer must start with one of {allowed}, got {name!r} in {file}")
        if "alpha" in parts:
            raise ValueError(f"LoRA's alphas must be in the header, got {name}.alpha in {file}")
        scale = _scale(name, parts["down"].shape[0], metadata.get(component), alpha)
        magnitude = parts.get("magnitude")
        if magnitude is not None and magnitude.numel() != parts["up"].shape[0]:
            shapes = f"{tuple(magnitude.shape)} for {parts['up'].shape[0]}"
            raise ValueError(f"LoRA layer {name} must have one magnitude an output, got {shapes}")
        flat = None if magnitude is None else magnitude.flatten()
        layers[name] = LoraLayer(parts["down"], parts["up"], scale, flat)
    if not layers:
        raise ValueError(f"LoRA must hold layers, got none in {file}")
    return layers


def _adapter_metadata(header: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """peft's settings by component; none where the header has none."""
    try:
        flat = json.loads(header.get(ADAPTER_METADATA, "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(f"LoRA's {ADAPTER_METADATA} must be JSON, got {error}") from error
    settings: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, name = key.partition(".")
        settings.setdefault(component, {})[name] = value
    return settings


def _scale(layer: str, rank: int, settings: Mapping[str, Any] | None, alpha: float | None) -> float:
    component, _, module = layer.partition(".")
    if not settings:
        if alpha is None:
            raise ValueError(
                f"LoRA must have adapter metadata in its header, got none for {component}: its scale is "
                "unknown; give alpha=..., often the rank"
            )
        return alpha / rank
    if lost := {"r", "lora_alpha"} - set(settings):
        raise ValueError(
            f"LoRA's adapter metadata must have r and lora_alpha, got no {min(lost)} of {component}"
        )
    ranks, alphas = settings.get("rank_pattern") or {}, settings.get("alpha_pattern") or {}
    expected = ranks.get(get_pattern_key(ranks, module), settings["r"])
    if rank != expected:
        raise ValueError(f"LoRA layer {layer} must be of the header's rank {expected}, got {rank}")
    alpha = alphas.get(get_pattern_key(alphas, module), settings["lora_alpha"])
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def base_kind(base: Any) -> str:
    """sd1, sd2 or sdxl, of a pipeline or given as such. Raises ValueError on another name."""
    if isinstance(base, str):
        if base not in BASES:
            raise ValueError(f"base must be a pipeline or one of {', '.join(BASES)}, got {base!r}")
        return base
    return family(base)


def kohya_lora(layers: Mapping[str, LoraLayer], *, base: Any) -> dict[str, Tensor]:
    """The tensors of a kohya file, a layer's `.lora_down.weight`, `.lora_up.weight`, `.alpha`, `.dora_scale`.

    base: the pipeline it is for, or sd1, sd2, sdxl. alpha / rank is the scale, for rsLoRA too. Where layers
    have several alphas all are given the first, and the difference is in their up: diffusers reads one.
    Raises ValueError on no layers and on those that such a base has not.
    """
    kind = base_kind(base)
    blocks: Blocks | None = None
    if kind == "sdxl":
        blocks = SDXL_BLOCKS if isinstance(base, str) else unet_blocks(base.unet)
    alpha, tensors = _alpha(layers), {}
    for layer, adapter in layers.items():
        if kind != "sdxl" and layer.startswith("text_encoder_2."):
            raise ValueError(f"LoRA for {kind} must have no second text encoder, got layer {layer}")
        name = kohya_name(layer, sdxl=kind == "sdxl", blocks=blocks)
        tensors[f"{name}.lora_down.weight"] = adapter.down
        tensors[f"{name}.lora_up.weight"] = adapter.up * (adapter.alpha / alpha)
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
        if adapter.magnitude is not None:
            tensors[f"{name}.dora_scale"] = adapter.magnitude.reshape(-1, *[1] * (adapter.down.ndim - 1))
    return tensors


def _alpha(layers: Mapping[str, LoraLayer]) -> float:
    if not layers:
        raise ValueError("LoRA must hold layers, got none")
    return next(iter(layers.values())).alpha


def kohya_metadata(layers: Mapping[str, LoraLayer], *, base: Any) -> dict[str, str]:
    """The header that kohya-style tools read: the module, rank and alpha, and what it was trained on.

    Ranks that differ between layers are "Dynamic". A pipeline that predicts v is marked so.
    """
    kind = base_kind(base)
    version = BASES[kind]
    scheduler = None if isinstance(base, str) else base.scheduler
    if kind != "sdxl" and scheduler is not None and scheduler.config.prediction_type == "v_prediction":
        version += "_v"
    ranks = {layer.rank for layer in layers.values()}
    dora = any(layer.magnitude is not None for layer in layers.values())
    args = {"algo": "lora", "dora_wd": "True", "wd_on_output": "True"} if dora else {}
    return {
        "ss_base_model_version": version,
        "ss_network_alpha": f"{_alpha(layers):.8g}",
        "ss_network_args": json.dumps(args),
        "ss_network_dim": str(*ranks) if len(ranks) == 1 else "Dynamic",
        "ss_network_module": "lycoris.kohya" if dora else "networks.lora",
        "ss_v2": str(kind == "sd2"),
    }


def save_kohya_lora(
    source: str | Path,
    file: Path,
    *,
    base: Any,
    metadata: Mapping[str, str] = MappingProxyType({}),
    dtype: torch.dtype | None = None,
    alpha: float | None = None,
) -> Path:
    """Writes a diffusers LoRA as a kohya file and returns its path; the same source makes the same bytes.

    source: a file or folder as `read_lora` takes it, alpha likewise. base: the pipeline it is for, against
    which it is then checked, or sd1, sd2, sdxl. metadata: more of the header, which wins over ours.
    dtype: of the weights; None keeps it. Raises ValueError as `read_lora`, `check_lora_fits`, `kohya_lora`.
    """
    layers = read_lora(source, alpha=alpha)
    if not isinstance(base, str):
        check_lora_fits(read_tensors(source)[0], base)
    tensors = {
        name: (value if dtype is None or name.endswith(".alpha") else value.to(dtype)).contiguous()
        for name, value in kohya_lora(layers, base=base).items()
    }
    own = kohya_metadata(layers, base=base) | {"sshs_model_hash": data_hash(tensors)}
    save_ordered(tensors, file, metadata=own | dict(metadata))
    return file


def check_lora_fits(tensors: Mapping[str, Tensor], pipeline: Any) -> None:
    """Raises ValueError with the first layer of a LoRA that the pipeline has not, or has in another shape.

    tensors: of a file in diffusers' or kohya's format.
    """
    layers = group_layers(tensors)
    if not layers:
        raise ValueError("LoRA must hold layers, got none")
    shapes = _weight_shapes(pipeline)
    for layer, parts in layers.items():
        if layer not in shapes:
            kind = type(pipeline).__name__
            raise ValueError(f"LoRA's layers must all be in the pipeline, got {layer} which {kind} has not")
        shape = (parts["up"].shape[0], *parts["down"].shape[1:])
        if shape != shapes[layer]:
            raise ValueError(
                f"LoRA must be for the pipeline's architecture, got {layer} for a weight of shape {shape} "
                f"where it is {shapes[layer]}"
            )


def _weight_shapes(pipeline: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights that a LoRA may change, by every name of their layers."""
    sdxl = base_kind(pipeline) == "sdxl"
    blocks = unet_blocks(pipeline.unet) if sdxl else None
    shapes = {}
    for component in COMPONENTS:
        network = getattr(pipeline, component, None)
        for name, module in [] if network is None else network.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim in (2, 4) and "lora_" not in name:
                layer = original_name(f"{component}.{name}")
                for spelled in spellings(layer, sdxl=sdxl, blocks=blocks):
                    shapes[spelled] = tuple(weight.shape)
    return shapes
