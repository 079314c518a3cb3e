"""A diagnosis of a start distribution as one self-contained page and as a table for the terminal."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image
from rich.table import Table
from rich.text import Text

from ..pca import Diagnosis, Outlier
from ..pca.verdict import STRONG
from ..whole_file import write_whole

TEMPLATE = Path(__file__).with_name("start_page.html")
SHOWN_KS = (1, 2, 4, 8, 16)
MOST_LINES = 12  # classes with a line of their own in the scree
MOST_PIXELS = 288  # a side of the pictures of the page, twice what they are shown at
DASH = 12  # half the width of a line of a single component
COLOURS = (
    "#3c6e9f", "#c2571a", "#1a7f4b", "#7a4fa3", "#9a7b00", "#b3261e",
    "#008b8b", "#8d5524", "#4b5d16", "#a3336f", "#2f4858", "#667079",
)  # fmt: skip


@dataclass(frozen=True)
class ClassPictures:
    """A class decoded by the VAE: its mean, and its leading components at -2 and +2 standard deviations."""

    mean: Image.Image
    components: list[tuple[Image.Image, Image.Image]]


def write_start_page(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    diagnosis: Diagnosis,
    pictures: Mapping[str, ClassPictures],
    outliers: Sequence[tuple[Outlier, Image.Image, str]],
    text_means: Sequence[tuple[str, Image.Image]] = (),
) -> Path:
    """Writes the page, pictures inlined, and returns its path.

    facts: what was read, label -> value; pictures: by class name; outliers: with thumbnail and origin;
    text_means: captions with their decoded expected starts.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["uri"] = lambda image: data_uri(_thumbnail(image))
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        facts=facts,
        diagnosis=diagnosis,
        pictures=pictures,
        outliers=outliers,
        marked=sum(outlier.flagged for outlier, _, _ in outliers),
        text_means=text_means,
        scree=scree(diagnosis),
        ks=shown_ks(diagnosis),
        percent=percent,
        strong=STRONG,
    )
    return write_whole(page, path)


def data_uri(image: Image.Image) -> str:
    """A picture as a JPEG data URI."""
    stream = io.BytesIO()
    image.convert("RGB").save(stream, format="JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _thumbnail(image: Image.Image) -> Image.Image:
    """The picture with at most MOST_PIXELS a side, never enlarged."""
    small = image.convert("RGB")
    small.thumbnail((MOST_PIXELS, MOST_PIXELS))
    return small


def diagnosis_table(diagnosis: Diagnosis) -> Table:
    """One row a class: the leak, how well a linear test tells it, and what components explain.

    The accuracy is the lowest over the declared samplers' first timesteps.
    """
    known = max(len(one.variances) for one in diagnosis.classes)
    ks = [k for k in (1, 4, 16) if k <= known]
    starts = ", ".join(f"{name} at t = {t}" for name, (t, _) in diagnosis.first.items())
    table = Table(title="The leak, before training", caption=f"Told apart: at least, by {starts}")
    table.add_column("class")
    for column in ("n", "eq. 6", "eq. 7", "told apart", *(f"K = {k}" for k in ks), "K seen"):
        table.add_column(column, justify="right")
    for one in diagnosis.classes:
        table.add_row(
            Text(one.class_name),
            str(one.pictures),
            f"{one.signal:.1f}",
            f"{one.signal_trained:.1f}",
            percent(min(one.accuracy.values())),
            *(percent(one.explained[k]) for k in ks),
            str(one.visible),
        )
    return table


def shown_ks(diagnosis: Diagnosis) -> list[int]:
    """The numbers of components whose share of the variance is shown."""
    known = max(len(one.variances) for one in diagnosis.classes)
    return [k for k in SHOWN_KS if k <= known]


def percent(share: float) -> str:
    """A share in percent, 100 only where it is."""
    return f"{math.floor(1000 * share) / 10:.1f} %" if 0.99 <= share < 1 else f"{100 * share:.0f} %"


def scree(diagnosis: Diagnosis, *, width: int = 720, height: int = 260) -> dict[str, Any] | None:
    """SVG polylines of variances over components, log scale, with the noise floor; None without components.

    A line a class up to MOST_LINES classes, else the mean over pictures; solid for training pictures, dashed
    for held-out ones. The scale reaches from 10^-4 to 100 times the largest variance at most; what
    lies beyond is drawn at its edge.
    """
    lines = _lines(diagnosis)
    values = [value for _, variances, _ in lines for value in variances if value > 0]
    if not values:
        return None
    floor = diagnosis.noise_floor if math.isfinite(diagnosis.noise_floor) else None
    largest = max(values)
    top = max(largest, min(floor or 0.0, largest * 100))
    bottom = max(min([*values, *([floor] if floor else [])]), largest * 1e-4)
    low, high = math.floor(math.log10(bottom)), math.ceil(math.log10(top))
    high = max(high, low + 1)
    most = max(len(variances) for _, variances, _ in lines)

    def y(value: float) -> float:
        power = min(max(math.log10(value), low), high) if value > 0 else low
        return height * (1 - (power - low) / (high - low))

    def points(variances: Sequence[float]) -> str:
        drawn = [(width * (k + 0.5) / most, y(v)) for k, v in enumerate(variances)]
        if len(drawn) == 1:  # a line needs two points
            [(x, level)] = drawn
            drawn = [(x - DASH, level), (x + DASH, level)]
        return " ".join(f"{x:.1f},{level:.1f}" for x, level in drawn)

    return {
        "width": width,
        "height": height,
        "lines": [
            {
                "name": name,
                "colour": COLOURS[i % len(COLOURS)],
                "training": points(training),
                "held_out": points(held_out) if any(held_out) else "",
            }
            for i, (name, training, held_out) in enumerate(lines)
        ],
        "floor": None if floor is None else y(floor),
        "ticks": [(y(10.0**power), f"{10.0**power:g}") for power in range(low, high + 1)],
        "components": [(width * (k - 0.5) / most, k) for k in range(1, most + 1) if k == 1 or k % 2 == 0],
    }


def _lines(diagnosis: Diagnosis) -> list[tuple[str, list[float], list[float]]]:
    """Name, variances and held-out variances of each line of the scree."""
    classes = diagnosis.classes
    if len(classes) <= MOST_LINES:
        return [(one.class_name, one.variances, one.held_out_variances) for one in classes]

    def mean(rows: list[tuple[int, list[float]]]) -> list[float]:
        weight = sum(n for n, _ in rows)
        return [sum(n * row[k] for n, row in rows) / weight for k in range(len(rows[0][1]))] if rows else []

    training = mean([(one.pictures, one.variances) for one in classes])
    held_out = mean([(one.held_out, one.held_out_variances) for one in classes if one.held_out_variances])
    return [(f"mean of {len(classes)} classes", training, held_out)]
