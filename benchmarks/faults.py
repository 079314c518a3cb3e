"""Does the audit catch what is wrong? `python benchmarks/faults.py [--catalogue FOLDER] [--other FOLDER]`

Pictures of the studio, or of a catalogue folder, that the limits were not made of, each spoiled in one way at
several severities (fault_pictures.py). Prints the share caught and the rules that caught most, the false
alarms on untouched pictures, for the studio by size of the catalogue. --other: a folder of pictures of
another kind. Cells of --out that are there are read, not measured again. --sheet: one spoiled studio picture
of each cell, red when caught.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from fault_pictures import FAULTS, Case, Fault
from onbrand.assets.classifier import COLOUR_NAMES, ProductClassifier
from onbrand.assets.gate import load_classifier
from onbrand.assets.vae import to_pixels
from onbrand.data.studio import CLASSES, Shot
from onbrand.evaluation import Failure, Limits, contact_sheet
from onbrand.evaluation.limits import limits_from
from onbrand.evaluation.look.foreground import Look, look, to_rgb
from onbrand.evaluation.looks import look_at, named_pictures
from onbrand.evaluation.rules import judge
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

SPLITS = {40: 20, 80: 20, 500: 4, 2000: 1}  # pictures of a catalogue whose false alarms are counted: times
FOLDER_SPLITS = 20

Measured = Callable[[float], dict[str, Any]]  # a severity to a cell


class Agreement:
    """How sure the packaged classifier is of the caption's kind and colour, multiplied, in [0, 1]."""

    name = "studio classifier"

    def __init__(self) -> None:
        self.model: ProductClassifier = load_classifier()

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> list[float]:
        small = [to_rgb(picture).resize((64, 64), Image.Resampling.BOX) for picture in pictures]
        logits = self.model(to_pixels(np.stack([np.asarray(picture) for picture in small])))
        scores = []
        for row, caption in zip(logits, captions, strict=True):
            words = caption.split()
            kind, colour = CLASSES.index(words[-1]), COLOUR_NAMES.index(words[1])
            scores.append(float(row[kind, 0].sigmoid() * row[kind, 1:].softmax(0)[colour]))
        return scores


def caught(looks: Sequence[Look], limits: Limits, **key: Any) -> dict[str, Any]:
    """One line of results: the share that broke a rule, its standard error, the share by rule."""
    failures = [judge(each, limits=limits) for each in looks]
    return counted(failures, **key)


def counted(failures: Sequence[Sequence[Failure]], **key: Any) -> dict[str, Any]:
    n, share = len(failures), sum(map(bool, failures)) / len(failures)
    rules = Counter(rule for broken in failures for rule in {failure.rule for failure in broken})
    return {
        **key, "n": n, "caught": share, "standard_error": math.sqrt(share * (1 - share) / n),
        "by_rule": {rule: round(count / n, 4) for rule, count in rules.most_common()},
    }  # fmt: skip


@dataclass
class Studio:
    """2,000 studio pictures to calibrate on, 1,000 others to judge and spoil, captions scored."""

    size: int
    pictures: int
    other: Path | None = None

    @property
    def name(self) -> str:
        return f"studio at {self.size} pixels"

    @cached_property
    def scorer(self) -> Agreement:
        return Agreement()

    @cached_property
    def fresh(self) -> list[Shot]:
        return [Shot("on-brand", self.size, 5, i) for i in range(1000)]

    @cached_property
    def known(self) -> list[Look]:
        return self.seen([Shot("on-brand", self.size, 0, i) for i in range(max(SPLITS))])

    @cached_property
    def held_out(self) -> list[Look]:
        return self.seen(self.fresh)

    @cached_property
    def limits(self) -> Limits:
        return limits_from(self.known, scorer=self.scorer.name)

    @cached_property
    def cases(self) -> list[Case]:
        return [
            Case(shot.draw(), self.fresh[-1 - i].draw(), shot)
            for i, shot in enumerate(self.fresh[: self.pictures])
        ]

    def seen(self, shots: Sequence[Shot]) -> list[Look]:
        drawn = (shot.draw() for shot in shots)
        captions = [shot.caption() for shot in shots]
        return look_at(drawn, what="reference", captions=captions, scorer=self.scorer)[1]

    def untouched(self, count: int) -> dict[str, Any]:
        failures: list[list[Failure]] = []
        for i in range(SPLITS[count]):
            limits = limits_from(self.known[i * count : (i + 1) * count], scorer=self.scorer.name)
            failures += [judge(each, limits=limits) for each in self.held_out]
        return counted(failures, unit=f"pictures calibrated, {SPLITS[count]} times")

    def wild(self, _: float) -> dict[str, Any]:
        shots = [Shot("wild", self.size, 9, i) for i in range(self.pictures)]
        return caught([look(shot.draw()) for shot in shots], self.limits, unit="")

    def other_captions(self, _: float) -> dict[str, Any]:
        captions = [shot.caption() for shot in self.fresh[-self.pictures :]]
        pictures = [case.picture for case in self.cases]
        looks = look_at(pictures, what="images", captions=captions, scorer=self.scorer)[1]
        return caught(looks, self.limits, unit="")

    def cells(self) -> dict[tuple[str, float], Measured]:
        found: dict[tuple[str, float], Measured] = {("untouched", n): self.untouched for n in SPLITS}
        found |= {("wild look", 0): self.wild, ("another's caption", 0): self.other_captions}
        return found | other_cells(self) | fault_cells(self, FAULTS)


@dataclass
class Folder:
    """A catalogue folder: three quarters to calibrate on, at random, the others to judge and spoil."""

    path: Path
    other: Path | None

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def found(self) -> list[Image.Image]:
        return [to_rgb(picture) for _, picture in named_pictures(self.path)]

    @cached_property
    def looks(self) -> list[Look]:
        return [look(picture) for picture in self.found]

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng(seed).permutation(len(self.found))
        return order[: 3 * len(order) // 4], order[3 * len(order) // 4 :]

    @cached_property
    def limits(self) -> Limits:
        return limits_from([self.looks[i] for i in self.split(0)[0]])

    @cached_property
    def cases(self) -> list[Case]:
        known, fresh = self.split(0)
        return [Case(self.found[i], self.found[known[0]]) for i in fresh]

    def untouched(self, _: float) -> dict[str, Any]:
        failures: list[list[Failure]] = []
        for seed in range(FOLDER_SPLITS):
            known, fresh = self.split(seed)
            limits = limits_from([self.looks[i] for i in known])
            failures += [judge(self.looks[i], limits=limits) for i in fresh]
        return counted(failures, unit=f"of the pictures calibrated, {FOLDER_SPLITS} splits")

    def cells(self) -> dict[tuple[str, float], Measured]:
        found: dict[tuple[str, float], Measured] = {("untouched", 0.75): self.untouched}
        return found | other_cells(self) | fault_cells(self, [f for f in FAULTS if not f.studio_only])


def other_cells(subject: Studio | Folder) -> dict[tuple[str, float], Measured]:
    """The pictures of another kind, if a folder of them was named."""
    folder = subject.other
    if folder is None:
        return {}

    def measured(_: float) -> dict[str, Any]:
        looks = [look(picture) for _, picture in named_pictures(folder)]
        return caught(looks, subject.limits, unit="")

    return {(f"pictures of {folder.name}", 0): measured}


def fault_cells(subject: Studio | Folder, faults: Sequence[Fault]) -> dict[tuple[str, float], Measured]:
    def measured(fault: Fault, severity: float) -> dict[str, Any]:
        looks = [look(fault.make(case, severity)) for case in subject.cases]
        return caught(looks, subject.limits, unit=fault.unit)

    return {(fault.name, s): partial(measured, fault) for fault in faults for s in fault.severities}


def sheet_of(studio: Studio) -> Image.Image:
    """One studio picture of every cell, red when it was caught."""
    pictures, captions = [], []
    for i, fault in enumerate(FAULTS):
        for severity in fault.severities:
            pictures.append(fault.make(studio.cases[i], severity))
            captions.append(f"{fault.name} {severity:g}")
    failures = [judge(look(picture), limits=studio.limits) for picture in pictures]
    return contact_sheet(pictures, captions=captions, failures=failures, columns=9, tile=128)


def table(lines: Sequence[dict[str, Any]], *, title: str) -> Table:
    """A row a cell, with the three rules that caught most."""
    shown = Table(title=title)
    for column in ("fault", "severity", "n", "caught", "by"):
        shown.add_column(column, justify="right" if column in ("n", "caught") else "left")
    for line in lines:
        rules = ", ".join(f"{rule} {share:.0%}" for rule, share in list(line["by_rule"].items())[:3])
        share = f"{line['caught']:.1%} ± {line['standard_error']:.1%}"
        shown.add_row(line["fault"], f"{line['severity']:g} {line['unit']}", str(line["n"]), share, rules)
    return shown


def main(
    catalogue: Annotated[Path | None, typer.Option(help="A folder of pictures; none: the studio")] = None,
    other: Annotated[Path | None, typer.Option(help="A folder of pictures of another kind")] = None,
    pictures: Annotated[int, typer.Option(help="Studio pictures spoiled in each way")] = 200,
    size: Annotated[int, typer.Option(help="Of the studio's pictures, in pixels")] = 128,
    out: Annotated[Path, typer.Option(help="JSON lines, read again")] = Path("faults.jsonl"),
    sheet: Annotated[Path | None, typer.Option(help="A picture of the studio's faults")] = None,
) -> None:
    """See the module."""
    warnings.simplefilter("ignore", UserWarning)
    subject = Studio(size, pictures, other) if catalogue is None else Folder(catalogue, other)
    stored = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(line["catalogue"], line["fault"], line["severity"]): line for line in stored}
    lines = []
    for (fault, severity), measured in track(subject.cells().items(), description=subject.name):
        key = (subject.name, fault, severity)
        if key not in done:
            named = dict(zip(("catalogue", "fault", "severity"), key, strict=True))
            done[key] = named | measured(severity)
            with out.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
        lines.append(done[key])
    Console().print(table(lines, title=subject.name))
    if sheet is not None:
        sheet_of(Studio(size, pictures)).save(sheet, quality=90)


if __name__ == "__main__":
    typer.run(main)
