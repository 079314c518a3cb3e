"""onbrand audit: any folder of pictures, or what a checkpoint draws, against a catalogue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from ..configs import config_of
from .console import best_device, quiet_console

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..train.judge import Audited

# the longer side of a folder's and its catalogue's pictures, in pixels, when they are compared
FOLDER_RESOLUTION = 256


@dataclass(frozen=True)
class Findings:
    """What was audited, examples of the catalogue, and what else the page says."""

    audited: Audited
    examples: list[Image]
    facts: dict[str, str]


def audit(
    subject: str, *, against: str, overrides: list[str], start: str, output: Path, min_pass: float = 0.0
) -> bool:
    """Prints the table, writes JSON, a page and a contact sheet; returns whether at least `min_pass` passed.

    Raises ValueError on a subject that is neither pictures nor a checkpoint, an unreadable catalogue, or a
    `min_pass` that is no share.
    """
    if not 0 <= min_pass <= 1:
        raise ValueError(f"--min-pass must be between 0 and 1, got {min_pass:g}")
    console = quiet_console()
    from ..train.models import resolve_base

    folder = Path(resolve_base(subject))
    is_pictures = folder.is_dir() and not (folder / "model_index.json").exists()
    judge = _audit_folder if is_pictures else _audit_checkpoint
    found = judge(resolve_base(subject), against=against, overrides=overrides, start=start, output=output)
    report = found.audited.report
    console.print(report.table(title=f"{subject} against {against}"))
    facts = {"catalogue": against, **found.facts}
    if min_pass:
        facts["wanted"] = f"at least {min_pass:.1%} pass"
    for what, path in _write(found, title=subject, facts=facts, output=output).items():
        console.print(f"[bold]{what:<9}[/]", escape(str(path)), soft_wrap=True)
    reached = report.pass_rate >= min_pass
    if not reached:
        counts = f"{sum(report.passed)} of {report.n}"
        console.print(f"pass rate {report.pass_rate:.2%} ({counts}) is below the wanted {min_pass:.2%}")
    return reached


def _write(found: Findings, *, title: str, facts: dict[str, str], output: Path) -> dict[str, Path]:
    """Writes audit.json, limits.json, report.html and sheet.jpg; returns those to be named."""
    from ..evaluation.audit_page import write_audit_page
    from ..train.judge import sheet

    audited = found.audited
    output.mkdir(parents=True, exist_ok=True)
    files = {
        "page": output / "report.html",
        "picture": output / "sheet.jpg",
        "numbers": output / "audit.json",
    }
    audited.report.save(files["numbers"])
    audited.report.limits.save(output / "limits.json")
    sheet(audited, title=title).save(files["picture"], quality=92)
    captions = audited.prompts if audited.prompts != audited.report.names else None
    write_audit_page(
        files["page"],
        report=audited.report,
        pictures=audited.pictures,
        title=title,
        reference_pictures=found.examples,
        captions=captions,
        facts=facts,
    )
    return files


def _audit_folder(subject: str, *, against: str, overrides: list[str], start: str, output: Path) -> Findings:
    from ..evaluation import audit as audit_pictures
    from ..evaluation.audit import named_pictures
    from ..evaluation.audit_page import EXAMPLES
    from ..evaluation.framing import fit_for, shrunk
    from ..train.draw import round_robin
    from ..train.judge import Audited
    from ..train.prepare import open_catalogue

    config = config_of(overrides, data={"source": against, "resolution": FOLDER_RESOLUTION})
    catalogue, side = open_catalogue(config.data), config.data.resolution
    known = range(len(catalogue))
    fit = fit_for(chain((image for _, image in named_pictures(subject)), map(catalogue.image, known)))
    names, pictures = [], []
    for name, picture in named_pictures(subject):
        names.append(name)
        pictures.append(fit(picture, side))
    report = replace(audit_pictures(pictures, (fit(catalogue.image(i), side) for i in known)), names=names)
    examples = [fit(catalogue.image(i), side) for i in round_robin(catalogue, EXAMPLES)]
    how = "in their own shape" if fit is shrunk else "in squares filled with their own backdrop"
    facts = {"compared at": f"at most {side} x {side} pixels, {how}"}
    return Findings(Audited(pictures, names, report), examples, facts)


def _audit_checkpoint(
    subject: str, *, against: str, overrides: list[str], start: str, output: Path
) -> Findings:
    from rich.progress import Progress

    from ..evaluation.audit_page import EXAMPLES
    from ..inference.load import load_pipeline
    from ..train.draw import decode_rows, round_robin
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
    start = start if pipeline.start_distribution else "none"
    with Progress(transient=True) as progress:
        bar = progress.add_task("drawing", total=settings.pictures)
        audited = audit_model(
            pipeline, parts[1], limits=limits, start=start, settings=settings, seed=config.run.seed,
            advance=lambda n: progress.advance(bar, n),
        )  # fmt: skip
    examples = decode_rows(pipeline.vae, parts[0], round_robin(parts[0].catalogue, EXAMPLES))
    facts = {
        "start": "pure noise" if start == "none" else start,
        "limits": "from the catalogue's pictures after a round trip through the model's VAE",
    }
    return Findings(audited, examples, facts)


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
