"""What `onbrand export` is given, and which forms it can take."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

KINDS = {
    "diffusers": "a folder for diffusers, with and without onbrand",
    "single-file": "one .safetensors under the original names",
    "lora": "a LoRA for diffusers and PEFT",
    "kohya": "a LoRA for kohya's scripts, A1111, ComfyUI",
    "controlnet": "the ControlNet alone",
    "comfyui": "its starts as .latent files and PNGs, with a workflow",
}
SIDECAR = "start_distribution"


class Place(NamedTuple):
    """Where a checkpoint is: a folder, file or hub id, a name for it, and the finished run that made it."""

    model: str
    name: str
    run: Path | None


class Source(NamedTuple):
    """What is exported: a pipeline, where it was read from, and the config of the run that made it."""

    pipeline: Any
    model: str
    name: str
    run: Path | None
    config: Any | None


def find_place(what: str) -> Place:
    """Where the checkpoint is. Raises ValueError on a run that is not finished."""
    from ..train.models import resolve_base

    path = Path(resolve_base(what))
    path = path.absolute() if path.exists() else path  # a hub id stays as it is
    folder = path.parent if path.name == "model" else path
    run = folder if (folder / "config.yaml").is_file() else None
    if run is not None and not (run / "model").is_dir():
        raise ValueError(f"run must be finished: {run / 'model'} must exist")
    name = path.stem if path.is_file() else (run or path).name
    return Place(str(run / "model" if run else path), name, run)


def open_source(place: Place) -> Source:
    """The checkpoint to export, in float32. Raises ValueError on a path that holds none."""
    import torch

    from ..configs import load_config
    from ..inference.load import load_pipeline

    config = None if place.run is None else load_config(str(place.run / "config.yaml"), [])
    # as a whole: text encoders would otherwise come in the precision of their files
    pipeline = load_pipeline(place.model, torch_dtype=torch.float32)
    return Source(pipeline, place.model, place.name, place.run, config)


def stored_precision(model: str) -> str | None:
    """float16 or bfloat16 where a local checkpoint's weights are all in that, None for any other."""
    from safetensors import safe_open

    path = Path(model)
    files = [path] if path.suffix == ".safetensors" and path.is_file() else path.glob("*/*.safetensors")
    found = set()
    for file in files:
        if file.parent.name != SIDECAR:
            with safe_open(file, framework="pt") as opened:
                found |= {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
    floats = [kind for kind in found if "F" in kind]
    return {"F16": "float16", "BF16": "bfloat16"}.get(floats[0]) if len(floats) == 1 else None


def possible_kinds(source: Source) -> list[str]:
    """The kinds that this checkpoint has a form of."""
    from ..inference.text import tokenizers

    pipeline = source.pipeline
    controlled, start = hasattr(pipeline, "controlnet"), pipeline.start_distribution is not None
    # readers of single files know the original vocabulary alone
    has_word = any(len(tokenizer) > tokenizer.vocab_size for tokenizer in tokenizers(pipeline))
    is_file = Path(source.model).is_file()
    has_lora = _is_lora(source)
    there = {
        "diffusers": True,
        "single-file": not controlled and not has_word and not is_file,
        "lora": has_lora,
        "kohya": has_lora,
        "controlnet": controlled,
        "comfyui": start and not controlled and not is_file,
    }
    return [kind for kind in KINDS if there[kind]]


def _is_lora(source: Source) -> bool:
    """Whether adapters are all that was trained: on the base they then draw what the model draws."""
    if source.run is None or source.config is None or not (source.run / "lora").is_dir():
        return False
    model = source.config.model
    return {model.method, model.text_encoder} <= {"lora", "frozen"} and model.controlnet is None
