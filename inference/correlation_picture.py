"""A correlation matrix to look at: blue for opposite, white for independent, red for alike."""

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..evaluation.contact_sheet import INK, MARGIN, PAPER, QUIET

BLUE, WHITE, RED = (33, 76, 160), (255, 255, 255), (178, 34, 40)  # at -1, 0 and 1
LIGHT_INK = "#ffffff"
DARK_FROM = 0.55  # of a strong enough colour light letters read better


def correlation_picture(correlation: Tensor, *, title: str = "", cell: int = 84) -> Image.Image:
    """A square for each pair of a gallery's pictures, its correlation in colour and written in.

    correlation: (N, N) with entries in [-1, 1], pictures numbered from 1; cell: pixels a square's side.
    Returns an RGB picture. Raises ValueError on another shape or range, and on a cell below 32.
    """
    if correlation.ndim != 2 or correlation.shape[0] != correlation.shape[1] or not correlation.numel():
        raise ValueError(f"correlation must be of shape (N, N), got {tuple(correlation.shape)}")
    values = correlation.detach().cpu().double()
    if not bool((values.abs() <= 1 + 1e-4).all()):
        low, high = float(values.min()), float(values.max())
        raise ValueError(f"correlation must be in [-1, 1], got {low:.3g} to {high:.3g}")
    if cell < 32:
        raise ValueError(f"cell must be at least 32 pixels, got {cell}")
    font, small = ImageFont.load_default(round(cell / 3.6)), ImageFont.load_default(round(cell / 4.6))
    left = MARGIN + cell // 3
    top = MARGIN + cell // 3 + (cell // 2 if title else 0)
    n = len(values)
    width = left + n * cell + MARGIN
    if title:
        width = max(width, round(font.getlength(title)) + 2 * MARGIN)
    sheet = Image.new("RGB", (width, top + n * cell + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 4), title, INK, font=font)
    for i in range(n):
        centre = i * cell + cell / 2
        draw.text((left + centre, top - 5), str(i + 1), QUIET, font=small, anchor="mb")
        draw.text((left - 8, top + centre), str(i + 1), QUIET, font=small, anchor="rm")
        for j in range(n):
            value, x, y = float(values[i, j]), left + j * cell, top + i * cell
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=_colour(value))
            ink = LIGHT_INK if abs(value) > DARK_FROM else INK
            text = f"{round(value, 2) + 0.0:.2f}"  # 0 added, so that there is no "-0.00"
            draw.text((x + cell / 2, y + cell / 2), text, ink, font=font, anchor="mm")
    return sheet


def _colour(value: float) -> tuple[int, ...]:
    end = RED if value > 0 else BLUE
    share = min(abs(value), 1.0)
    return tuple(round(white + share * (full - white)) for white, full in zip(WHITE, end, strict=True))
