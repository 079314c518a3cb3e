"""Many pictures on one sheet, those that failed framed in red with the reason under them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .look.foreground import to_rgb

PAPER, INK, QUIET = "#f4f4f1", "#1d1d1b", "#6d6d68"
PASS, FAIL, NEUTRAL = "#58a065", "#c8281e", "#cfcfca"
MARGIN, GAP, PAD = 24, 16, 6
THICK, THIN = 4, 2
CAPTION_LINES, REASON_LINES = 2, 3
HEADING_SIZE = 20

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Line = tuple[str, str]  # text, colour


def contact_sheet(
    images: Sequence[Image.Image],
    *,
    captions: Sequence[str] | None = None,
    failures: Sequence[Sequence[tuple[str, str]]] | None = None,
    columns: int = 8,
    tile: int = 144,
    title: str | None = None,
) -> Image.Image:
    """A sheet of pictures, each in a square tile: thin green frame passed, thick red frame failed, and why.

    images: PIL pictures of any size, enlarged or shrunk to `tile` pixels; captions: one a picture;
    failures: one list of (rule, reason) a picture, empty for a pass, as in `AuditReport.failures` (None: no
    verdict, grey frames). Returns an RGB picture of at most `columns` tiles a row.
    Raises ValueError on no images, on lists of another length, and on less than 1 column or 32 pixels a tile.
    """
    images = list(images)
    if not images:
        raise ValueError("images must be at least one picture, got none")
    for what, entries in (("captions", captions), ("failures", failures)):
        if entries is not None and len(entries) != len(images):
            raise ValueError(f"{what} must be one a picture, got {len(entries)} for {len(images)} pictures")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if tile < 32:
        raise ValueError(f"tile must be at least 32 pixels, got {tile}")

    columns = min(columns, len(images))
    font = ImageFont.load_default(max(10, round(tile / 12)))
    texts = [
        _lines(captions[i] if captions else None, failures[i] if failures else (), font=font, width=tile)
        for i in range(len(images))
    ]
    line_height = _line_height(font)
    starts = range(0, len(images), columns)
    text_heights = [PAD + line_height * max(len(lines) for lines in texts[i : i + columns]) for i in starts]
    heading = _heading(title, failures)
    top = MARGIN + (HEADING_SIZE * 2 if heading else 0)
    width = 2 * MARGIN + columns * tile + (columns - 1) * GAP
    height = top + sum(tile + text + GAP for text in text_heights) - GAP + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    if heading:
        large = ImageFont.load_default(HEADING_SIZE)
        heading = _shortened(heading, font=large, width=width - 2 * MARGIN)
        draw.text((MARGIN, MARGIN - 4), heading, INK, font=large)

    y = top
    for start, text_height in zip(starts, text_heights, strict=True):
        for column, i in enumerate(range(start, min(start + columns, len(images)))):
            x = MARGIN + column * (tile + GAP)
            failed = None if failures is None else bool(failures[i])
            _draw_tile(sheet, images[i], x=x, y=y, tile=tile, failed=failed)
            for row, (text, colour) in enumerate(texts[i]):
                draw.text((x, y + tile + PAD + row * line_height), text, colour, font=font)
        y += tile + text_height + GAP
    return sheet


def _heading(title: str | None, failures: Sequence[Sequence[tuple[str, str]]] | None) -> str:
    if failures is None:
        return title or ""
    count = f"{sum(not broken for broken in failures)} of {len(failures)} pass"
    return f"{title}: {count}" if title else count


def _draw_tile(
    sheet: Image.Image, image: Image.Image, *, x: int, y: int, tile: int, failed: bool | None
) -> None:
    """The picture centred in its square, the frame around it."""
    colour = NEUTRAL if failed is None else FAIL if failed else PASS
    thickness = THICK if failed else THIN
    inner = tile - 2 * THICK
    picture = ImageOps.contain(to_rgb(image), (inner, inner), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((x, y, x + tile - 1, y + tile - 1), fill=PAPER, outline=colour, width=thickness)
    sheet.paste(picture, (x + (tile - picture.width) // 2, y + (tile - picture.height) // 2))


def _lines(caption: str | None, broken: Sequence[tuple[str, str]], *, font: Font, width: int) -> list[Line]:
    """Text under a tile: the caption, the rules broken, and the first reason in full."""
    lines = [(text, INK) for text in _wrapped(caption or "", font=font, width=width, most=CAPTION_LINES)]
    if broken:
        rules = ", ".join(dict.fromkeys(rule for rule, _ in broken))
        reason = broken[0][1].replace("Delta E ", "Delta\u00a0E\u00a0")  # kept together on one line
        lines += [(text, FAIL) for text in _wrapped(rules, font=font, width=width, most=REASON_LINES)]
        lines += [(text, QUIET) for text in _wrapped(reason, font=font, width=width, most=REASON_LINES)]
    return lines


def _wrapped(text: str, *, font: Font, width: int, most: int) -> list[str]:
    """The text in at most `most` lines of `width` pixels, broken between words, cut with an ellipsis."""
    lines: list[str] = []
    words = text.split(" ")
    while words and len(lines) < most - 1:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line += f" {words.pop(0)}"
        lines.append(_shortened(line, font=font, width=width))
    if words:
        lines.append(_shortened(" ".join(words), font=font, width=width))
    # the default font has no glyph for a no-break space
    return [line.replace("\u00a0", " ") for line in lines if line]


def _shortened(text: str, *, font: Font, width: int) -> str:
    """The text cut to `width` pixels, with an ellipsis when anything was cut."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1].rstrip()
    return text + "…"


def _line_height(font: Font) -> int:
    _, top, _, bottom = font.getbbox("Ãgjpq|")
    return round(bottom - top) + 3
