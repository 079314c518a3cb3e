"""The pipeline that a path or hub id holds."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError, safe_open

from ..pca.distribution import StartDistribution
from .component import COMPONENT
from .pipelines import (
    OffsetStableDiffusionControlNetPipeline,
    OffsetStableDiffusionPipeline,
    OffsetStableDiffusionXLControlNetPipeline,
    OffsetStableDiffusionXLPipeline,
)

SINGLE_FILES = (".safetensors", ".ckpt")


def load_pipeline(
    path: str | Path,
    *,
    torch_dtype: torch.dtype = torch.float32,
    config: str | Path | None = None,
    plain: bool = False,
) -> Any:
    """A pipeline from a diffusers folder (with or without a start distribution), a single file or a hub id.

    Returns one of the four Offset... pipelines: Stable Diffusion or its XL form, with or without ControlNet.
    torch_dtype: of the models, whatever they were saved in; the start distribution is float32. config: a
    diffusers folder or hub id of the single file's architecture; if None, diffusers guesses it and asks the
    hub. plain: a start distribution in the folder, or in start_distribution/ beside the single file, is left
    unread.
    Raises ValueError on a path that is none of these, and on a folder without a VAE or of another kind.
    """
    with warnings.catch_warnings():
        # its new name, `dtype`, means nothing to the older diffusers that may be installed
        warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated", category=FutureWarning)
        return _load(Path(path), path, config=config, plain=plain, torch_dtype=torch_dtype)


def to_draw(pipeline: Any, device: torch.device | str) -> Any:
    """Moves a pipeline to the device that draws, and on a CPU lays its weights out channels-last.

    That layout draws the same but for rounding, some percent faster (docs/results.md). Weights in it cannot
    be saved.
    """
    pipeline.to(device)
    if pipeline.device.type == "cpu":
        for name in ("unet", "controlnet", "vae"):
            if hasattr(pipeline, name):
                getattr(pipeline, name).to(memory_format=torch.channels_last)
    return pipeline


def _load(
    local: Path, path: str | Path, *, config: str | Path | None, plain: bool, **dtype: torch.dtype
) -> Any:
    start: dict[str, Any] = {COMPONENT: None} if plain else {}
    if local.is_file():
        if local.suffix not in SINGLE_FILES:
            raise ValueError(f"model file must end in {' or '.join(SINGLE_FILES)}, got {path}")
        return _from_file(local, config=config, plain=plain, **dtype)
    if local.is_dir():
        _check_folder(local)
    elif local.is_absolute() or str(path).startswith((".", "~")) or str(path).count("/") != 1:
        raise ValueError(f"model must be an existing folder, a single file or a hub id, got {str(path)!r}")
    try:
        return _class_of_folder(path).from_pretrained(str(path), **dtype, **start)
    except OSError as error:
        if local.is_dir():
            raise
        raise ValueError(
            f"model must be an existing folder, a single file or a hub id, got {str(path)!r}: {error}"
        ) from error


def _from_file(file: Path, *, config: str | Path | None, plain: bool, **dtype: torch.dtype) -> Any:
    architecture = {} if config is None else {"config": str(config)}
    try:
        pipeline = _class_of_file(file, config).from_single_file(
            str(file), **{COMPONENT: None}, **dtype, **architecture
        )
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        needs = "" if config else ", and its architecture be given as config or the hub be there to ask"
        raise ValueError(f"single file {file} must be readable{needs}, got {reason}") from error
    beside = file.parent / COMPONENT
    if not plain and beside.is_dir():
        pipeline.set_start_distribution(StartDistribution.from_pretrained(beside))
    return pipeline


def _check_folder(folder: Path) -> None:
    index_file = folder / StableDiffusionPipeline.config_name
    if not index_file.is_file():
        raise ValueError(f"model folder must hold {index_file.name}, got {folder} without it")
    index = StableDiffusionPipeline.load_config(folder)
    if not _has(index, "vae") or not (folder / "vae").is_dir():
        raise ValueError(f"model folder must hold a VAE, got {folder} without one")


def _class_of_folder(path: str | Path) -> Any:
    """The class for a diffusers folder or hub id, by the components it lists."""
    index = StableDiffusionPipeline.load_config(str(path))
    if not _has(index, "unet") or not _has(index, "text_encoder"):
        kind = index["_class_name"]
        raise ValueError(
            f"model must be of Stable Diffusion 1, 2 or XL, with or without ControlNet, got {kind} in {path}"
        )
    if _has(index, "controlnet"):
        if _has(index, "text_encoder_2"):
            return OffsetStableDiffusionXLControlNetPipeline
        return OffsetStableDiffusionControlNetPipeline
    return OffsetStableDiffusionXLPipeline if _has(index, "text_encoder_2") else OffsetStableDiffusionPipeline


def _class_of_file(file: Path, config: str | Path | None) -> Any:
    """The class for a single file: by its config where there is one, else by the names of its tensors."""
    if config is not None:
        return _class_of_folder(config)
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            if any(key.startswith("conditioner.") for key in tensors.keys()):  # noqa: SIM118
                return OffsetStableDiffusionXLPipeline
    return OffsetStableDiffusionPipeline


def _has(index: Mapping[str, Any], component: str) -> bool:
    return (index.get(component) or [None])[0] is not None
