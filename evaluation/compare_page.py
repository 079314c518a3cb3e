"""Two models side by side as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from PIL import Image

from ..whole_file import write_whole
from .start_page import data_uri

TEMPLATE = Path(__file__).with_name("compare_page.html")
SIDE = 256


@dataclass(frozen=True)
class Pair:
    """Two pictures, how alike they are (cosine), and what they were drawn from."""

    first: Image.Image
    second: Image.Image
    cosine: float
    caption: str


@dataclass(frozen=True)
class Section:
    """Pairs under a heading, with a sentence of what they show and the names of the two columns."""

    title: str
    told: str
    columns: tuple[str, str]
    pairs: Sequence[Pair]


def write_compare_page(
    path: Path, *, title: str, verdict: str, facts: Mapping[str, str], sections: Sequence[Section]
) -> Path:
    """Writes the page, pictures inlined, and returns its path. facts: label -> value."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["uri"] = lambda image: data_uri(_shown(image))
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title, verdict=verdict, facts=facts, sections=sections
    )
    return write_whole(page, path)


def _shown(image: Image.Image) -> Image.Image:
    """At most 256 pixels a side; small pictures enlarged so that they are not blurred by the browser."""
    factor = SIDE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
