"""The on-brand audit: which pictures keep the look of a catalogue, rule by rule, and why others do not."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from .foreground import measure
from .rules import RULES, Failure, Limits, Range, judge, limits_from, write_json

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FEW = 20  # limits from fewer pictures are rough

Pictures = str | os.PathLike[str] | Iterable[Image.Image]
Classes = Sequence[str | int]


def picture_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """All pictures in a folder and the folders in it, sorted, hidden ones left out.

    Raises ValueError when there is no such folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"pictures must be a list of PIL images or an existing folder, got {str(folder)!r}")
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise ValueError(
            f"folder must hold pictures ({' '.join(PICTURE_SUFFIXES)}), got none in {str(folder)!r}"
        )
    return paths


def open_picture(path: Path) -> Image.Image:
    """One picture file, turned upright; Raises ValueError that names a file which cannot be read."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"picture must be readable, got {str(path)!r}: {error}") from error


def named_pictures(pictures: Pictures) -> Iterator[tuple[str, Image.Image]]:
    """Name and picture of each: the path inside a folder, or "picture <position>" in a list."""
    if isinstance(pictures, str | os.PathLike):
        for path in picture_paths(pictures):
            yield path.relative_to(pictures).as_posix(), open_picture(path)
        return
    for i, image in enumerate(pictures):
        if not isinstance(image, Image.Image):
            raise ValueError(f"pictures must be PIL images, got {type(image).__name__} at position {i}")
        yield f"picture {i}", image


def measure_pictures(pictures: Pictures, *, what: str) -> tuple[list[str], list[dict[str, float]]]:
    """Names and measures of all pictures, one in memory at a time; Raises ValueError when there are none."""
    names, measures = [], []
    for name, image in tqdm(
        named_pictures(pictures), desc=f"measuring {what}", delay=2, leave=False, disable=None
    ):
        try:
            measures.append(measure(image))
        except ValueError as error:
            raise ValueError(f"{what}, {name}: {error}") from error
        names.append(name)
    if not names:
        raise ValueError(f"{what} must be at least one picture, got none")
    return names, measures


def class_labels(classes: Classes | None, *, count: int, what: str) -> list[str] | None:
    """Class names as strings, one a picture; Raises ValueError when their number differs."""
    if classes is None:
        return None
    labels = [str(name) for name in classes]
    if len(labels) != count:
        raise ValueError(
            f"{what} must be one class a picture, got {len(labels)} classes and {count} pictures"
        )
    return labels


def calibrate(images: Pictures, *, classes: Classes | None = None) -> Limits:
    """The limits that a catalogue's own pictures set, so that at least 95 % of further ones pass every rule.

    images: PIL images or a folder, searched recursively; classes: one class (name or id) a picture, for
    limits of its own on where the product sits and how it is lit wherever a class has 40 pictures.
    Raises ValueError on no pictures, an unreadable one, as many classes as there are not pictures, or a
    catalogue in which no product stands out. Warns below 20 pictures.
    """
    _, measures = measure_pictures(images, what="reference")
    if len(measures) < FEW:
        warnings.warn(f"limits from fewer than {FEW} pictures are rough, got {len(measures)}", stacklevel=2)
    return limits_from(measures, classes=class_labels(classes, count=len(measures), what="reference_classes"))


@dataclass(frozen=True)
class AuditReport:
    """What an audit found; everything but `limits` has one entry a picture, in the order given.

    names: file names or positions; measures: see `foreground.measure`; failures: broken rules with reasons,
    empty for a picture that passed; limits: what they were judged by.
    """

    names: list[str]
    measures: list[dict[str, float]]
    failures: list[list[Failure]]
    limits: Limits

    @property
    def n(self) -> int:
        """How many pictures were audited."""
        return len(self.names)

    @property
    def passed(self) -> list[bool]:
        """Whether each picture broke no rule."""
        return [not broken for broken in self.failures]

    @property
    def pass_rate(self) -> float:
        """Share of pictures that broke no rule, in [0, 1]."""
        return sum(self.passed) / self.n

    @property
    def standard_error(self) -> float:
        """Binomial standard error of `pass_rate`."""
        return math.sqrt(self.pass_rate * (1 - self.pass_rate) / self.n)

    @property
    def rules(self) -> dict[str, float]:
        """Share of pictures that kept each rule, in [0, 1]."""
        broken = [{failure.rule for failure in failures} for failures in self.failures]
        return {rule: 1 - sum(rule in rules for rules in broken) / self.n for rule in RULES}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, strings and lists; what could not be measured is None."""
        pictures = [
            {
                "name": name,
                "passed": not broken,
                "failures": [failure._asdict() for failure in broken],
                "measures": {key: None if math.isnan(value) else value for key, value in values.items()},
            }
            for name, values, broken in zip(self.names, self.measures, self.failures, strict=True)
        ]
        return {
            "pass_rate": self.pass_rate,
            "standard_error": self.standard_error,
            "n": self.n,
            "rules": self.rules,
            "limits": self.limits.to_dict(),
            "pictures": pictures,
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_dict` as a JSON file, atomically."""
        write_json(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AuditReport:
        """Reads what `save` wrote."""
        stored = json.loads(Path(path).read_text())
        pictures = stored["pictures"]
        return cls(
            names=[picture["name"] for picture in pictures],
            measures=[
                {key: math.nan if value is None else value for key, value in picture["measures"].items()}
                for picture in pictures
            ],
            failures=[[Failure(**failure) for failure in picture["failures"]] for picture in pictures],
            limits=Limits.from_dict(stored["limits"]),
        )

    def table(self, *, title: str = "On-brand audit") -> Table:
        """Pass rate and limit of each rule, for a terminal."""
        table = Table(title=Text(title), caption=_caption(self.limits))
        table.add_column("rule")
        table.add_column("pass", justify="right")
        table.add_column("allowed")
        for rule, rate in self.rules.items():
            table.add_row(rule, f"{rate:.1%}", describe_limits(self.limits, rule=rule))
        table.add_section()
        table.add_row("all rules", f"{self.pass_rate:.1%} ± {self.standard_error:.1%}", f"{self.n} pictures")
        return table


def audit(
    images: Pictures,
    reference: Pictures | Limits | None = None,
    *,
    classes: Classes | None = None,
    reference_classes: Classes | None = None,
    limits: Limits | None = None,
) -> AuditReport:
    """Judges pictures by the look of a catalogue: backdrop, cropping, centring, scale and light.

    images, reference: PIL images or a folder, searched recursively; reference may be `calibrate`'s Limits;
    `limits`, when given, stand in for a reference. classes, reference_classes: one class (name or id) a
    picture.
    Raises ValueError on no pictures, an unreadable one (named), as many classes as there are not pictures, a
    class that the reference does not have, or neither reference nor limits.
    """
    if limits is None:
        if reference is None:
            raise ValueError("reference must be pictures, a folder or limits, got None")
        if isinstance(reference, Limits):
            limits = reference
        else:
            limits = calibrate(reference, classes=reference_classes)
    names, measures = measure_pictures(images, what="images")
    labels = class_labels(classes, count=len(names), what="classes")
    failures = [
        judge(values, limits=limits, class_name=labels[i] if labels else None)
        for i, values in enumerate(measures)
    ]
    return AuditReport(names=names, measures=measures, failures=failures, limits=limits)


def compare_table(reports: Mapping[str, AuditReport], *, title: str = "On-brand audit") -> Table:
    """Pass rates of several audits side by side, one column a report, for a terminal."""
    table = Table(title=Text(title))
    table.add_column("rule")
    for name in reports:
        table.add_column(Text(name), justify="right")
    for rule in RULES:
        table.add_row(rule, *(f"{report.rules[rule]:.1%}" for report in reports.values()))
    table.add_section()
    table.add_row("all rules", *(f"{report.pass_rate:.1%}" for report in reports.values()), style="bold")
    table.add_row("standard error", *(f"{report.standard_error:.1%}" for report in reports.values()))
    table.add_row("pictures", *(str(report.n) for report in reports.values()))
    return table


def describe_limits(limits: Limits, *, rule: str) -> str:
    """What the pooled limits of one rule allow, in a few words."""
    allowed = limits.pooled
    match rule:
        case "background":
            colour = ", ".join(f"{value:.1f}" for value in limits.background_lab)
            return f"Delta E {allowed['background'].high:.1f} from Lab ({colour})"
        case "uniformity":
            return f"Delta E {allowed['uniformity'].high:.1f} around the border"
        case "cropping":
            return f"{allowed['frame_contact'].high:.1%} of the edge touched"
        case "centring":
            return f"x {_percent(allowed['offset_x'])}, y {_percent(allowed['offset_y'])}"
        case "scale":
            return f"length {_percent(allowed['extent'])}, area {_percent(allowed['area'])}"
        case _:
            light, contrast = allowed["lightness"], allowed["contrast"]
            return (
                f"L {light.low:.0f} to {light.high:.0f}, contrast {contrast.low:.0f} to {contrast.high:.0f}"
            )


def _percent(allowed: Range) -> str:
    return f"{allowed.low:.1%} to {allowed.high:.1%}"


def _caption(limits: Limits) -> str:
    own = f"; {len(limits.by_class)} classes have limits of their own" if limits.by_class else ""
    return f"limits from {limits.n} catalogue pictures{own}"
