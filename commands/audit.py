"""onbrand audit: any folder of pictures, or what a checkpoint draws, against a catalogue."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from ..configs import config_of, load_config
from .console import best_device, check_folder, notes_once, quiet_console
from .judges import load_descriptor, load_scorer

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..configs.schema import DataConfig
    from ..data.catalogue import Catalogue
    from ..evaluation.agreement import Scorer
    from ..evaluation.looks import Descriptor
    from ..train.judge import Audited

# the longer side of a folder's and its catalogue's pictures, in pixels, when they are compared
FOLDER_RESOLUTION = 256


@dataclass(frozen=True)
class Asked:
    """How to audit: see the command's options."""

    against: str
    overrides: list[str]
    start: str
    output: Path
    descriptor: Descriptor | None
    scorer: Scorer | None


@dataclass(frozen=True)
class Findings:
    """What was audited, examples of the catalogue, and what else the page says."""

    audited: Audited
    examples: list[Image]
    facts: dict[str, str]


def audit(
    subject: str,
    *,
    against: str,
    overrides: list[str],
    start: str,
    output: Path,
    min_pass: float = 0.0,
    descriptor: str | None = None,
    clip: str | None = None,
) -> bool:
    """Prints the table, writes JSON, a page and a contact sheet; returns whether at least `min_pass` passed.

    descriptor: an SSCD torchscript file, or a CLIP folder or hub id, that tells kinds of pictures apart;
    clip: a CLIP folder or hub id that scores pictures with their captions.
    Raises ValueError on a subject that is neither pictures nor a checkpoint, an unreadable catalogue,
    models that are none, pictures without captions if they are scored, a `min_pass` that is no share, or an
    output that is a file.
    """
    if not 0 <= min_pass <= 1:
        raise ValueError(f"--min-pass must be between 0 and 1, got {min_pass:g}")
    check_folder(output)
    console = quiet_console()
    from PIL.Image import DecompressionBombWarning

    from ..train.models import resolve_base
    from ..train.stage import INPUTS

    warnings.filterwarnings("ignore", category=DecompressionBombWarning)  # twice as many are refused

    folder = Path(resolve_base(subject))
    if (folder / "config.yaml").is_file() and (folder / INPUTS).is_file():
        raise ValueError(f"run must be finished: {folder / 'model'} must exist")
    is_pictures = folder.is_dir() and not (folder / "model_index.json").exists()
    judge = _audit_folder if is_pictures else _audit_checkpoint
    asked = Asked(
        against, overrides, start, output,
        None if descriptor is None else load_descriptor(descriptor),
        None if clip is None else load_scorer(clip),
    )  # fmt: skip
    with notes_once(lambda text, **how: console.print(escape(text), **how)):
        found = judge(resolve_base(subject), asked)
    report = found.audited.report
    console.print(report.table(title=f"{subject} against {against}"))
    facts = {"catalogue": against, **found.facts}
    if descriptor is not None:
        facts["kind of picture by"] = descriptor
    if clip is not None:
        facts["captions scored by"] = clip
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


def _audit_folder(subject: str, asked: Asked) -> Findings:
    from ..evaluation import audit as audit_pictures
    from ..evaluation import calibrate
    from ..evaluation.audit_page import EXAMPLES
    from ..evaluation.look.framing import fit_for, measurable, shrunk
    from ..train.draw import round_robin
    from ..train.judge import Audited
    from ..train.prepare import open_catalogue
    from .folders import Fitted, captions_of, open_upright, pictures_of, sizes_of

    folder, scorer = Path(subject), asked.scorer
    paths = pictures_of(folder, output=asked.output)
    names = [path.relative_to(folder).as_posix() for path in paths]
    config = config_of(asked.overrides, data={"source": asked.against, "resolution": FOLDER_RESOLUTION}).data
    captions = None if scorer is None else captions_of(folder, paths, column=config.caption_column)
    catalogue = _measurable(open_catalogue(config, captioned=scorer is not None), config)
    own, side = list(sizes_of(paths)), config.resolution
    for path, (width, height) in zip(paths, own, strict=True):
        if not measurable((width, height), side):
            raise ValueError(
                f"picture {str(path)!r} must have 8 x 8 pixels to measure, the longer side shrunk to {side}, "
                f"got {width} x {height}"
            )
    fit = fit_for([*own, *((width, height) for height, width in catalogue.sizes)])
    known = Fitted(catalogue.image, len(catalogue), fit, side)
    pictures = Fitted(lambda i: open_upright(paths[i], backdrop=config.backdrop), len(paths), fit, side)
    limits = calibrate(
        known, descriptor=asked.descriptor, captions=None if scorer is None else catalogue.captions,
        scorer=scorer,
    )  # fmt: skip
    report = audit_pictures(
        pictures, limits, names=names, descriptor=asked.descriptor, captions=captions, scorer=scorer
    )
    how = "in their own shape" if fit is shrunk else "in squares filled with their own backdrop"
    facts = {"compared at": f"at most {side} x {side} pixels, {how}", **_left_out(catalogue)}
    examples = [known[i] for i in round_robin(catalogue, EXAMPLES)]
    return Findings(Audited(pictures, captions or names, report), examples, facts)


def _audit_checkpoint(subject: str, asked: Asked) -> Findings:
    from rich.progress import Progress

    from ..evaluation.audit_page import EXAMPLES
    from ..inference.load import load_pipeline, to_draw
    from ..train.draw import decode_rows, round_robin
    from ..train.judge import audit_model, fix_limits
    from ..train.prepare import encode_part, latents_folder, split_catalogue

    pipeline = to_draw(load_pipeline(subject), best_device())
    pipeline.safety_checker = None  # a picture it blackens says nothing about the brand
    of_run = _settings_of_run(subject, asked.against)
    config = config_of(
        asked.overrides,
        data={**of_run.get("data", {}), "source": asked.against, **framing_of(pipeline)},
        model=condition_of(pipeline) | of_run.get("model", {}),
        run=of_run.get("run", {}),
    )
    catalogues = split_catalogue(config)
    if not config.data.class_prefixes and (start := pipeline.start_distribution):
        taught = start.config["caption_prefixes"] or {}
        catalogues = catalogues[0].with_prefixes(taught), catalogues[1].with_prefixes(taught)
    parts = [
        encode_part(catalogue, pipeline, config, cache_dir=latents_folder(config.data, asked.output),
                    device=pipeline.device)
        for catalogue in catalogues
    ]  # fmt: skip
    judges: dict[str, Any] = {"descriptor": asked.descriptor, "scorer": asked.scorer}
    limits = fix_limits(parts[0], pipeline.vae, **judges)
    settings = config.run.audit
    start = asked.start if pipeline.start_distribution else "none"
    with Progress(transient=True) as progress:
        bar = progress.add_task("drawing", total=settings.pictures)
        audited = audit_model(
            pipeline, parts[1], limits=limits, start=start, settings=settings, seed=config.run.seed,
            advance=lambda n: progress.advance(bar, n), **judges,
        )  # fmt: skip
    examples = decode_rows(pipeline.vae, parts[0], round_robin(parts[0].catalogue, EXAMPLES))
    facts = {
        "start": "pure noise" if start == "none" else start,
        "limits": "from the catalogue's pictures after a round trip through the model's VAE",
        **_left_out(parts[0].catalogue),
    }
    return Findings(audited, examples, facts)


def _settings_of_run(subject: str, against: str) -> dict[str, dict[str, Any]]:
    """What the run that made a checkpoint says of this catalogue, so that what it held out is held out again;
    empty for another catalogue, and for a checkpoint of no run."""
    file = Path(subject).with_name("config.yaml")
    if Path(subject).name != "model" or not file.is_file():
        return {}
    told = load_config(str(file)).to_dict()
    data, controlnet = told["data"], told["model"]["controlnet"]
    if Path(data["source"]).absolute() != Path(against).absolute():
        return {}
    return {
        "data": {key: value for key, value in data.items() if key not in ("source", "cache_dir")},
        "model": {"controlnet": controlnet} if controlnet else {},
        "run": {"seed": told["run"]["seed"]},
    }


def _measurable(catalogue: Catalogue, config: DataConfig) -> Catalogue:
    """The catalogue without what leaves too few pixels to measure; Raises ValueError when nothing is left."""
    from ..evaluation.look.framing import measurable

    fine = [measurable((width, height), config.resolution) for height, width in catalogue.sizes]
    kept = catalogue.subset(row for row, is_fine in enumerate(fine) if is_fine)
    small = [origin for origin, is_fine in zip(catalogue.origins, fine, strict=True) if not is_fine]
    kept.dropped += [(origin, "with fewer than 8 x 8 pixels to measure") for origin in small]
    if not len(kept):
        raise ValueError(
            f"catalogue {config.source} must hold a usable picture, got {len(kept.dropped)} unusable ones"
        )
    return kept


def _left_out(catalogue: Catalogue) -> dict[str, str]:
    """A fact, said aloud as well, where pictures of the catalogue could not be used."""
    if not catalogue.dropped:
        return {}
    why = Counter(reason for _, reason in catalogue.dropped)
    counts = ", ".join(f"{count} {reason}" for reason, count in why.most_common())
    first = catalogue.dropped[0][0]
    warnings.warn(f"pictures of the catalogue were left out: {counts} (the first is {first})", stacklevel=2)
    return {"left out of the catalogue": counts}


def framing_of(pipeline: Any) -> dict[str, Any]:
    """The data settings a pipeline was trained with, as far as it knows: resolution, fit, backdrop."""
    from ..inference.size import own_sizes

    start = pipeline.start_distribution
    known = dict((start.config["image_transform"] if start else None) or {})
    frame = {key: known[key] for key in ("fit", "backdrop") if key in known}
    sizes = [list(size) for size in own_sizes(pipeline)]
    height, width = sizes[0]
    buckets = sizes if len(sizes) > 1 or height != width else None
    return {"resolution": height, "buckets": buckets, **frame}


def condition_of(pipeline: Any) -> dict[str, Any]:
    """The model settings under which a pipeline can be drawn from: a ControlNet is shown cut-out products."""
    return {"controlnet": {"condition": "segment"}} if hasattr(pipeline, "controlnet") else {}
