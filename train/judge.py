"""The audits of a finished run: catalogue, base and shipped model by one set of limits, fixed beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..configs.schema import AuditConfig
from ..data.processes import ALONE, Processes
from ..evaluation import AuditReport, Limits, audit, calibrate, contact_sheet
from ..evaluation.agreement import Scorer
from ..evaluation.looks import Descriptor
from .draw import decode_rows, draw, round_robin
from .part import Part

CALIBRATION_PICTURES = 1000


@dataclass(frozen=True)
class Audited:
    """Pictures with their audit."""

    pictures: Sequence[Image.Image]
    prompts: list[str]
    report: AuditReport


def fix_limits(
    part: Part,
    vae: Any,
    *,
    processes: Processes = ALONE,
    descriptor: Descriptor | None = None,
    scorer: Scorer | None = None,
) -> Limits:
    """The catalogue's own limits, from its training pictures after a VAE round trip.

    What the VAE cannot draw is not held against a model that draws through it. descriptor, scorer: see
    `calibrate`; the captions that are scored are the catalogue's.
    """
    chosen = round_robin(part.catalogue, CALIBRATION_PICTURES)
    pictures = decode_rows(vae, part, chosen, processes=processes)
    captions = None if scorer is None else [part.catalogue.captions[row] for row in chosen]
    return calibrate(
        pictures, classes=_classes(part, chosen), descriptor=descriptor, captions=captions, scorer=scorer
    )


def audit_held_out(part: Part, vae: Any, *, limits: Limits, processes: Processes = ALONE) -> Audited:
    """Held-out catalogue pictures, after the same round trip: what a perfect model would score.

    All of them, or of a large part as many as the limits are fixed from, class by class.
    """
    rows = sorted(round_robin(part.catalogue, CALIBRATION_PICTURES))
    pictures = decode_rows(vae, part, rows, processes=processes)
    captions = [part.catalogue.captions[row] for row in rows]
    return Audited(pictures, captions, audit(pictures, limits, classes=_classes(part, rows)))


def audit_model(
    pipeline: Any,
    part: Part,
    *,
    limits: Limits,
    start: str,
    settings: AuditConfig,
    seed: int,
    processes: Processes = ALONE,
    advance: Callable[[int], None] = lambda count: None,
    descriptor: Descriptor | None = None,
    scorer: Scorer | None = None,
) -> Audited:
    """Pictures of held-out captions from one start; equal seeds give every model and start equal noises.

    descriptor, scorer: those that the limits were fixed with.
    """
    rows = round_robin(part.catalogue, settings.pictures, again=True)
    pictures = draw(
        pipeline,
        part,
        rows,
        start=start,
        settings=settings,
        seed=seed,
        processes=processes,
        advance=advance,
    )
    prompts = [part.catalogue.captions[row] for row in rows]
    report = audit(
        pictures, limits, classes=_classes(part, rows), descriptor=descriptor,
        captions=None if scorer is None else prompts, scorer=scorer,
    )  # fmt: skip
    return Audited(pictures, prompts, report)


def _classes(part: Part, rows: Sequence[int]) -> list[str]:
    return [part.catalogue.pictures[row].class_name for row in rows]


def audit_file(name: str, run: Path) -> Path:
    """Where the audit of that name is kept."""
    return run / "audits" / f"{name.replace(' ', '_')}.json"


def save_audit(audited: Audited, *, name: str, run: Path, shown: int = 64) -> Path:
    """Writes audits/<name>.json and samples/<name>.png, the pictures with their failures marked."""
    file = audit_file(name, run)
    picture = run / "samples" / f"{file.stem}.png"
    for path in (file, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    audited.report.save(file)
    sheet(audited, title=name, shown=shown).save(picture)
    return picture


def sheet(audited: Audited, *, title: str, shown: int = 64) -> Image.Image:
    """The first pictures with their prompts, failures marked."""
    count = len(audited.pictures)
    if count > shown:
        title += f" (the first {shown} of {count})"
    return contact_sheet(
        audited.pictures[:shown],
        captions=audited.prompts[:shown],
        failures=audited.report.failures[:shown],
        title=title,
    )


def side_by_side(rows: Mapping[str, Sequence[Image.Image]], *, columns: int = 8) -> Image.Image:
    """A row of pictures for each name, the same prompt and seed down a column: the picture to look at."""
    pictures = [picture for row in rows.values() for picture in row[:columns]]
    captions = [name for name, row in rows.items() for _ in row[:columns]]
    return contact_sheet(pictures, captions=captions, columns=columns, tile=128)
