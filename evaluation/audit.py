"""The on-brand audit: which pictures keep the look of a catalogue, rule by rule, and why others do not."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from .agreement import Scorer, TextAgreement
from .limits import Limits, limits_from, read_limits, write_json
from .look.kind import DESCRIPTOR
from .looks import Descriptor, Pictures, look_at, name_of, named_pictures, picture_paths
from .rules import Failure, broken, compared, describe_limits

__all__ = ["AuditReport", "audit", "calibrate", "compare_table", "describe_limits", "named_pictures",
           "picture_paths"]  # fmt: skip

FEW = 20  # limits from fewer pictures are rough

Classes = Sequence[str | int]


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


def calibrate(
    images: Pictures,
    *,
    classes: Classes | None = None,
    descriptor: Descriptor | None = None,
    captions: Sequence[str] | None = None,
    scorer: Scorer | None = None,
) -> Limits:
    """The limits that a catalogue's own pictures set, so that at least 95 % of further ones pass every rule.

    images: PIL images or a folder, searched recursively; classes: one class (name or id) a picture, for
    limits of its own on how the product sits, stands and is lit wherever a class has 40 pictures.
    descriptor: what tells kinds of pictures apart, from pictures to features (N, D); None: layout, edges and
    colours, without a model. captions, scorer: one caption a picture and what scores them together, for a
    rule on it.
    Raises ValueError on no pictures, an unreadable one, as many classes or captions as there are not
    pictures, captions without a scorer, or a catalogue in which no product stands out. Warns below 20
    pictures, and where the pictures disagree with each other.
    """
    _, looks = look_at(images, what="reference", descriptor=descriptor, captions=captions, scorer=scorer)
    if len(looks) < FEW:
        warnings.warn(f"limits from fewer than {FEW} pictures are rough, got {len(looks)}", stacklevel=2)
    return limits_from(
        looks,
        classes=class_labels(classes, count=len(looks), what="reference_classes"),
        descriptor=name_of(descriptor, DESCRIPTOR),
        scorer=None if scorer is None else name_of(scorer),
    )


@dataclass(frozen=True)
class AuditReport:
    """What an audit found; everything but `limits` has one entry a picture, in the order given.

    names: file names or positions; measures: see `foreground.measure` and `rules.compared`; failures: broken
    rules with reasons, empty for a picture that passed; limits: what they were judged by; text_agreement: of
    captions that were scored; classes: those they were judged as, None without.
    """

    names: list[str]
    measures: list[dict[str, float]]
    failures: list[list[Failure]]
    limits: Limits
    text_agreement: TextAgreement | None = None
    classes: list[str] | None = None

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
        """Share of pictures that kept each rule they were judged by, in [0, 1]."""
        judged = [rule for rule in self.limits.rules if rule != "text" or self.text_agreement is not None]
        broken = [{failure.rule for failure in failures} for failures in self.failures]
        return {rule: 1 - sum(rule in rules for rules in broken) / self.n for rule in judged}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, strings and lists; what could not be measured is None."""
        pictures: list[dict[str, Any]] = [
            {
                "name": name,
                "passed": not broken,
                "failures": [failure._asdict() for failure in broken],
                "measures": {key: None if math.isnan(value) else value for key, value in values.items()},
            }
            for name, values, broken in zip(self.names, self.measures, self.failures, strict=True)
        ]
        for picture, class_name in zip(pictures, self.classes or (), strict=bool(self.classes)):
            picture["class"] = class_name
        return {
            "pass_rate": self.pass_rate,
            "standard_error": self.standard_error,
            "n": self.n,
            "rules": self.rules,
            "limits": self.limits.to_dict(),
            "text_agreement": None if self.text_agreement is None else self.text_agreement.to_dict(),
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
        """Reads what `save` wrote; its limits lack the catalogue's own pictures and judge no more.

        Raises ValueError, which says what to do, on an audit by other rules.
        """
        stored = json.loads(Path(path).read_text())
        limits = read_limits(stored["limits"], path)
        pictures, agreement = stored["pictures"], stored["text_agreement"]
        return cls(
            names=[picture["name"] for picture in pictures],
            measures=[
                {key: math.nan if value is None else value for key, value in picture["measures"].items()}
                for picture in pictures
            ],
            failures=[[Failure(**failure) for failure in picture["failures"]] for picture in pictures],
            limits=limits,
            text_agreement=None if agreement is None else TextAgreement(**agreement),
            classes=[picture["class"] for picture in pictures] if "class" in pictures[0] else None,
        )

    def table(self, *, title: str = "On-brand audit") -> Table:
        """Pass rate and limit of each rule, for a terminal."""
        table = Table(title=Text(title), caption=_caption(self.limits))
        table.add_column("rule")
        table.add_column("pass", justify="right")
        table.add_column("allowed")
        for rule, rate in self.rules.items():
            table.add_row(rule, f"{rate:.1%}", describe_limits(self.limits, rule=rule))
        if (agreement := self.text_agreement) is not None:
            table.add_row("caption", f"{agreement.mean:.3f}", str(agreement))
        table.add_section()
        table.add_row("all rules", f"{self.pass_rate:.1%} ± {self.standard_error:.1%}", _pictures(self.n))
        return table


def audit(
    images: Pictures,
    reference: Pictures | Limits | None = None,
    *,
    classes: Classes | None = None,
    reference_classes: Classes | None = None,
    limits: Limits | None = None,
    names: Sequence[str] | None = None,
    descriptor: Descriptor | None = None,
    captions: Sequence[str] | None = None,
    scorer: Scorer | None = None,
) -> AuditReport:
    """Judges pictures by the look of a catalogue: backdrop, framing, pose, light, shadow, kind of picture.

    images, reference: PIL images or a folder, searched recursively; reference may be `calibrate`'s Limits;
    `limits`, when given, stand in for a reference. classes, reference_classes: one class (name or id) a
    picture. names: what the images are called, None: their file names or positions. descriptor: the one that
    calibrated, None for the model-free one. captions, scorer: one caption of each image and what scores them
    together: reported, and judged where the limits hold its own scores of the catalogue.
    Raises ValueError on no pictures, an unreadable one (named), as many classes, names or captions as there
    are not pictures, a class that the reference does not have, another descriptor or scorer than calibrated,
    or neither reference nor limits.
    """
    if limits is None:
        if reference is None:
            raise ValueError("reference must be pictures, a folder or limits, got None")
        if isinstance(reference, Limits):
            limits = reference
        else:
            limits = calibrate(reference, classes=reference_classes, descriptor=descriptor)
    _check_judges(limits, descriptor, scorer)
    told, looks = look_at(
        images, what="images", descriptor=descriptor, given_names=names, captions=captions, scorer=scorer
    )
    labels = class_labels(classes, count=len(told), what="classes")
    measures, failures = [], []
    for i, look in enumerate(looks):
        label = None if labels is None else labels[i]
        measures.append(compared(look, limits=limits, class_name=label))
        failures.append(broken(measures[-1], limits=limits, class_name=label))
    agreement = None
    if scorer is not None:
        scores = [values["text"] for values in measures]
        agreement = TextAgreement.of(scores, scorer=name_of(scorer), known=limits.text)
    return AuditReport(told, measures, failures, limits, agreement, labels)


def _check_judges(limits: Limits, descriptor: Descriptor | None, scorer: Scorer | None) -> None:
    """Raises ValueError where the pictures would be described or scored otherwise than the catalogue was."""
    if limits.reference is not None:
        known, asked = limits.reference.kind.descriptor, name_of(descriptor, DESCRIPTOR)
        if known != asked:
            raise ValueError(f"descriptor must be the one that calibrated ({known}), got {asked}")
    if scorer is not None and limits.text is not None:
        known, asked = limits.text["scorer"], name_of(scorer)
        if known != asked:
            raise ValueError(f"scorer must be the one that calibrated ({known}), got {asked}")


def compare_table(reports: Mapping[str, AuditReport], *, title: str = "On-brand audit") -> Table:
    """Pass rates of several audits side by side, one column a report, for a terminal."""
    table = Table(title=Text(title))
    table.add_column("rule")
    for name in reports:
        table.add_column(Text(name), justify="right")
    for rule in dict.fromkeys(rule for report in reports.values() for rule in report.rules):
        rates = (report.rules.get(rule) for report in reports.values())
        table.add_row(rule, *("" if rate is None else f"{rate:.1%}" for rate in rates))
    table.add_section()
    table.add_row("all rules", *(f"{report.pass_rate:.1%}" for report in reports.values()), style="bold")
    table.add_row("standard error", *(f"{report.standard_error:.1%}" for report in reports.values()))
    table.add_row("pictures", *(str(report.n) for report in reports.values()))
    return table


def _caption(limits: Limits) -> str:
    own = f"; {len(limits.by_class)} classes have limits of their own" if limits.by_class else ""
    about = list(dict.fromkeys(each.criterion for each in limits.disagreements))
    apart = f" that disagree on {', '.join(about)}" if about else ""
    return f"limits from {_pictures(limits.n, 'catalogue picture')}{apart}{own}"


def _pictures(count: int, what: str = "picture") -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
