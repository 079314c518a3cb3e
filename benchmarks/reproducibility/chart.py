"""A line chart with standard errors, in the repository's colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onbrand.evaluation.contact_sheet import INK, MARGIN, PAPER, QUIET
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, RIGHT = 560, 320, 64, 340
COLOURS = ("#2e5894", "#b22222", "#36988e", "#c88a1c", "#6b4a9c", "#7a7a7a")

Point = tuple[float, float, float]  # place, value, standard error


def line_chart(
    series: Mapping[str, Sequence[Point]],
    *,
    title: str,
    places: Sequence[str],
    below: str,
    highest: float = 1.0,
    marks: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
) -> Image.Image:
    """Lines over places[0] at 0, places[1] at 1 and so on; values from 0 to highest, errors as bars."""
    font, large = ImageFont.load_default(14), ImageFont.load_default(18)
    top, bottom = MARGIN + 34, MARGIN + 34 + HEIGHT
    sheet = Image.new("RGB", (LEFT + WIDTH + RIGHT, bottom + 62), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 6), title, INK, font=large)

    def at(place: float, value: float) -> tuple[float, float]:
        across = (WIDTH - 40) * place / max(1, len(places) - 1)
        return LEFT + 20 + across, bottom - HEIGHT * min(value, highest) / highest

    for mark in marks:
        y = at(0, mark)[1]
        pen.line((LEFT, y, LEFT + WIDTH, y), "#dddddd")
        pen.text((LEFT - 8, y), f"{mark:.3g}", INK, font=font, anchor="rm")
    for place, name in enumerate(places):
        pen.text((at(place, 0)[0], bottom + 8), name, INK, font=font, anchor="ma")
    pen.text((LEFT + WIDTH / 2, bottom + 32), below, QUIET, font=font, anchor="ma")
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        pen.line([at(place, value) for place, value, _ in points], colour, width=3)
        for place, value, error in points:
            (x, low), (_, high) = at(place, max(0.0, value - error)), at(place, value + error)
            pen.line((x, low, x, high), colour, width=2)
            y = at(place, value)[1]
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        y = top + 8 + 24 * number
        pen.line((LEFT + WIDTH + 16, y, LEFT + WIDTH + 40, y), colour, width=3)
        pen.text((LEFT + WIDTH + 48, y), name, INK, font=font, anchor="lm")
    return sheet
