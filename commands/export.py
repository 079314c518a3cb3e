"""onbrand export: a checkpoint in the forms that other tools read, each proven before it counts as done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from .console import best_device, quiet_console
from .export_source import (
    KINDS,
    SIDECAR,
    Source,
    find_place,
    open_source,
    possible_kinds,
    stored_precision,
)
from .request import check_dtype


def export(
    what: str,
    *,
    to: list[str],
    output: Path | None,
    dtype: str | None,
    draws: int,
    push: str | None,
    private: bool,
) -> Path:
    """Writes each kind into a folder of its own under `output`; returns that.

    what: a run's folder, or a checkpoint. output: `exports/` in the run, or `exports/<name>`. dtype: if None,
    the half precision that all of a local checkpoint is in, else float32. A kind that draws is loaded in a
    fresh process, without onbrand, and must draw the same picture. push: a hub repository, made before
    anything is written, to which all is uploaded, with what an earlier call has written as it is.
    Raises ValueError on kinds this checkpoint cannot have, on folders that are there already, and on an
    export that does not come back as it was; of that one nothing is left.
    """
    check_kinds(to)
    check_dtype(dtype)
    console = quiet_console()
    place = find_place(what)
    output = (output or (place.run or Path()) / "exports" / ("" if place.run else place.name)).absolute()
    _check_new(output, to, push=push)
    source = open_source(place)
    possible = possible_kinds(source)
    kinds = [kind for kind in KINDS if kind in possible] if "all" in to else list(dict.fromkeys(to))
    for kind in kinds:
        if kind not in possible:
            raise ValueError(f"--to must be one of {', '.join(possible)} for {what}, got {kind}")
    _check_new(output, kinds, push=push)
    if push is not None:
        _make_repository(push, private=private)
    dtype = dtype or stored_precision(source.model)
    # adapters keep the precision they were trained in, so they come before the weights are rounded
    for kind in sorted(kinds, key=lambda kind: kind not in ("lora", "kohya")):
        if (output / kind).exists():
            continue
        with console.status(f"{kind}: writing and drawing again"):
            _export(source, kind, output / kind, dtype=dtype, draws=draws, console=console)
    if push is not None:
        _push(output, kinds, repository=push)
        console.print(f"[bold]pushed[/]  {push}")
    return output


def check_kinds(to: list[str]) -> None:
    """Raises ValueError on a kind of export that there is not."""
    for kind in to:
        if kind not in (*KINDS, "all"):
            raise ValueError(f"--to must be one of {', '.join(KINDS)} or all, got {kind!r}")


def _check_new(output: Path, kinds: list[str], *, push: str | None) -> None:
    for kind in kinds:
        if (output / kind).exists() and push is None:
            raise ValueError(f"output must be new, got {output / kind}, which exists")


def _export(
    source: Source, kind: str, folder: Path, *, dtype: str | None, draws: int, console: Console
) -> None:
    import torch
    from accelerate.utils.memory import clear_device_cache

    from ..export.check import check_elsewhere, draw_proof
    from ..whole_file import whole

    pipeline = source.pipeline
    if dtype is not None and kind not in ("lora", "kohya"):
        pipeline.to(getattr(torch, dtype)).to(torch.float32)  # rounded, so that the export loses nothing
    try:
        with whole(folder) as beside:
            beside.mkdir()
            checked, options = WRITERS[kind](
                source, beside, dtype=dtype and getattr(torch, dtype), draws=draws
            )
            if pipeline.start_distribution is not None and not (beside / SIDECAR).exists():
                pipeline.start_distribution.save_pretrained(beside / SIDECAR)
            said = "not drawn again: diffusers cannot show what this form does"
            if checked is not None:
                proof = draw_proof(
                    pipeline.to(best_device()), prompt=_prompt(source), class_name=_class(source)
                )
                pipeline.to("cpu")
                clear_device_cache()  # the other process is to have the accelerator to itself
                worst = check_elsewhere(proof, path=checked, **options)
                said = f"drawn again in a fresh process, at most {worst:.2f}/255 off"
    finally:
        pipeline.to("cpu")
    console.print(f"[bold]{kind:<12}[/] {folder}  [dim]{said}[/]", soft_wrap=True)


Written = tuple[Path | None, dict[str, Any]]


def _diffusers(source: Source, folder: Path, *, dtype: Any, draws: int) -> Written:
    import torch

    from ..export.card import start_facts, write_card
    from ..train.card import write_run_card

    pipeline = source.pipeline
    pipeline.to(dtype or pipeline.dtype).save_pretrained(folder)
    pipeline.to(torch.float32)
    if source.run is not None and source.config is not None:
        start, factor = pipeline.start_distribution, pipeline.vae_scale_factor
        write_run_card(source.config, start, vae_scale_factor=factor, run=source.run, folder=folder)
    elif pipeline.start_distribution is not None:
        facts = start_facts(pipeline.start_distribution, vae_scale_factor=pipeline.vae_scale_factor)
        write_card(folder, title=source.name, audit=None, base=source.model, facts=facts)
    return folder, {"kind": "plain" if pipeline.start_distribution is None else "diffusers"}


def _single_file(source: Source, folder: Path, *, dtype: Any, draws: int) -> Written:
    from ..export.single_file import save_single_file

    file = folder / f"{source.name}.safetensors"
    save_single_file(source.pipeline, file, metadata=_metadata(source), dtype=dtype)
    return file, {"kind": "single-file", "model": source.model}


def _lora(source: Source, folder: Path, *, dtype: Any, draws: int) -> Written:
    assert source.run is not None
    for file in (source.run / "lora").iterdir():
        shutil.copy2(file, folder / file.name)
    return next(folder.glob("*.safetensors")), {"kind": "lora", **_base(source)}


def _kohya(source: Source, folder: Path, *, dtype: Any, draws: int) -> Written:
    from ..export.lora import read_lora, save_kohya_lora

    assert source.run is not None
    file = folder / f"{source.name}.safetensors"
    metadata = _metadata(source, lora=True)
    save_kohya_lora(source.run / "lora", file, base=source.pipeline, metadata=metadata)
    layers = read_lora(source.run / "lora").values()
    # diffusers leaves DoRA's magnitudes out of a file in this form
    readable = all(layer.magnitude is None for layer in layers)
    return (file if readable else None), {"kind": "lora", **_base(source)}


def _controlnet(source: Source, folder: Path, *, dtype: Any, draws: int) -> Written:
    import torch

    source.pipeline.controlnet.to(dtype or torch.float32).save_pretrained(folder)
    source.pipeline.controlnet.to(torch.float32)
    return folder, {"kind": "controlnet", "model": source.model}


def _comfyui(source: Source, folder: Path, *, dtype: Any, draws: int) -> Written:
    from ..export.comfyui import save_comfyui_starts

    name, start = f"{source.name}.safetensors", source.pipeline.start_distribution
    first, *_ = save_comfyui_starts(
        source.pipeline.to(best_device()), folder, draws=draws, checkpoint_name=name
    )
    # of a start that follows the text the file holds the class mean, which the pipeline does not start from
    return (None if start.needs_text else first), {"kind": "comfyui", "model": source.model}


WRITERS: dict[str, Callable[..., Written]] = {
    "diffusers": _diffusers,
    "single-file": _single_file,
    "lora": _lora,
    "kohya": _kohya,
    "controlnet": _controlnet,
    "comfyui": _comfyui,
}


def _base(source: Source) -> dict[str, Any]:
    from ..train.models import resolve_base

    return {"base": resolve_base(source.config.model.base), "model": source.model}  # type: ignore[union-attr]


def _metadata(source: Source, *, lora: bool = False) -> dict[str, str]:
    """Header fields: ModelSpec's, and what this was trained with."""
    from ..export.modelspec import modelspec

    today = date.today().isoformat()
    metadata = modelspec(source.pipeline, title=source.name, date=today, lora=lora)
    if source.config is not None:
        settings = source.config.to_dict()
        metadata["onbrand.config"] = json.dumps({key: settings[key] for key in ("model", "start", "train")})
    return metadata


def _class(source: Source) -> str | None:
    """The first class with pictures."""
    start = source.pipeline.start_distribution
    if start is None:
        return None
    counts = start.config["counts"] or [1] * len(start.class_names)
    return next(name for name, count in zip(start.class_names, counts, strict=True) if count)


def _prompt(source: Source) -> str:
    name = _class(source)
    start = source.pipeline.start_distribution
    prefixes = (start.config["caption_prefixes"] if start else None) or {}
    return prefixes.get(name) or f"a {name or 'product'}"


def _make_repository(repository: str, *, private: bool) -> None:
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repository, exist_ok=True, private=private)
    except Exception as error:  # of name, login or network, each of a kind of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"--push must be a repository you can write to, got {repository}: {reason}"
        ) from error


def _push(output: Path, kinds: list[str], *, repository: str) -> None:
    """Uploads the diffusers folder to the repository's root, other kinds to folders of their names."""
    from huggingface_hub import HfApi

    hub = HfApi()
    for kind in kinds:
        inside = None if kind == "diffusers" else kind
        hub.upload_folder(repo_id=repository, folder_path=output / kind, path_in_repo=inside)
