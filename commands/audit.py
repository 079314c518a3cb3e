"""onbrand audit: any folder of pictures, or what a checkpoint draws, against a catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..configs import config_of
from .console import best_device, quiet_console

# pictures of a folder and of its catalogue are fitted to this square before they are compared
FOLDER_RESOLUTION = 256


def audit(subject: str, *, against: str, overrides: list[str], start: str, output: Path) -> float:
    """Prints the table, writes JSON and a contact sheet to `output`; returns the pass rate.

    Raises ValueError on a subject that is neither pictures nor a checkpoint, or an unreadable catalogue.
    """
    console = quiet_console()
    from ..train.models import resolve_base

    folder = Path(resolve_base(subject))
    is_pictures = folder.is_dir() and not (folder / "model_index.json").exists()
    judge = _audit_folder if is_pictures else _audit_checkpoint
    audited = judge(resolve_base(subject), against=against, overrides=overrides, start=start, output=output)
    from ..train.judge import sheet

    output.mkdir(parents=True, exist_ok=True)
    audited.report.save(output / "audit.json")
    audited.report.limits.save(output / "limits.json")
    sheet(audited, title=subject).save(output / "sheet.jpg", quality=92)
    console.print(audited.report.table(title=f"{subject} against {against}"))
    console.print(
        f"[bold]report[/]   {output / 'audit.json'}\n[bold]picture[/]  {output / 'sheet.jpg'}", soft_wrap=True
    )
    return audited.report.pass_rate


def _audit_folder(subject: str, *, against: str, overrides: list[str], start: str, output: Path) -> Any:
    from ..evaluation import audit as audit_pictures
    from ..evaluation.audit import named_pictures
    from ..train.judge import Audited
    from ..train.part import transform_of
    from ..train.prepare import open_catalogue

    config = config_of(overrides, data={"source": against, "resolution": FOLDER_RESOLUTION})
    catalogue, transform = open_catalogue(config.data), transform_of(config.data)
    names, found = zip(*named_pictures(subject), strict=True)
    pictures = [transform.resize(picture) for picture in found]
    reference = (transform.resize(catalogue.image(i)) for i in range(len(catalogue)))
    return Audited(pictures, list(names), audit_pictures(pictures, reference))


def _audit_checkpoint(subject: str, *, against: str, overrides: list[str], start: str, output: Path) -> Any:
    from rich.progress import Progress

    from ..inference.load import load_pipeline
    from ..train.judge import audit_model, fix_limits
    from ..train.prepare import encode_part, latents_folder, split_catalogue

    pipeline = load_pipeline(subject).to(best_device())
    config = config_of(
        overrides, data={"source": against, **framing_of(pipeline)}, model=condition_of(pipeline)
    )
    parts = [
        encode_part(catalogue, pipeline, config, cache_dir=latents_folder(config.data, output),
                    device=pipeline.device)
        for catalogue in split_catalogue(config)
    ]  # fmt: skip
    limits = fix_limits(parts[0], pipeline.vae)
    settings = config.run.audit
    with Progress(transient=True) as progress:
        bar = progress.add_task("drawing", total=settings.pictures)
        return audit_model(
            pipeline, parts[1], limits=limits, start=start if pipeline.start_distribution else "none",
            settings=settings, seed=config.run.seed, advance=lambda n: progress.advance(bar, n),
        )  # fmt: skip


def framing_of(pipeline: Any) -> dict[str, Any]:
    """The data settings a pipeline was trained with, as far as it knows: resolution, fit, backdrop."""
    start = pipeline.start_distribution
    known = dict((start.config["image_transform"] if start else None) or {})
    frame = {key: known[key] for key in ("fit", "backdrop") if key in known}
    height, width = pipeline._size(None, None)
    factor = pipeline.vae_scale_factor
    sizes = [[h * factor, w * factor] for h, w in start.sizes] if start else [[height, width]]
    buckets = sizes if len(sizes) > 1 or height != width else None
    return {"resolution": height, "buckets": buckets, **frame}


def condition_of(pipeline: Any) -> dict[str, Any]:
    """The model settings under which a pipeline can be drawn from: a ControlNet is shown cut-out products."""
    return {"controlnet": {"condition": "segment"}} if hasattr(pipeline, "controlnet") else {}
