"""Pictures beside what was asked of them: a layout's boxes, and what each word's attention looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .detection import Box
from .pixels import Array, to_array

SIDE = 256
COLOURS = ("#d1495b", "#2e6f95", "#3a7d44", "#b5651d", "#6a4c93", "#00798c")
COLD, HOT = np.array([18, 24, 48]), np.array([255, 196, 61])  # where a word's attention is least and most


def with_boxes(picture: Image.Image, boxes: Sequence[tuple[str, Box]]) -> Image.Image:
    """The picture, enlarged to 256 pixels at its longer side if it is smaller, with named boxes on it.

    boxes: a name and (x0, y0, x1, y1) in fractions of width and height; equal names have one colour.
    """
    shown = _enlarged(picture)
    draw = ImageDraw.Draw(shown)
    font = ImageFont.load_default(max(12, round(max(shown.size) / 20)))
    names = list(dict.fromkeys(name for name, _ in boxes))
    for name, (x0, y0, x1, y1) in boxes:
        colour = COLOURS[names.index(name) % len(COLOURS)]
        left, top, right, bottom = (
            round(share * (side - 1)) for share, side in zip((x0, y0, x1, y1), shown.size * 2, strict=True)
        )
        draw.rectangle((left, top, right, bottom), outline=colour, width=3)
        place = (left + 3, top + 2)
        draw.rectangle(draw.textbbox(place, name, font=font), fill=colour)
        draw.text(place, name, "#ffffff", font=font)
    return shown


def with_attention(picture: Image.Image, attention: Array) -> Image.Image:
    """The picture under a map (rows, columns) in [0, 1] of where a word is looked for: dark least."""
    shown = _enlarged(picture)
    cells = to_array(attention)
    colours = COLD + cells[..., None] * (HOT - COLD)
    heat = Image.fromarray(colours.round().astype(np.uint8)).resize(shown.size, Image.Resampling.NEAREST)
    return Image.blend(shown, heat, 0.6)


def attention_rows(
    pictures: Sequence[Image.Image], maps: Mapping[str, Any], boxes: Sequence[tuple[str, Box]]
) -> tuple[list[Image.Image], list[str]]:
    """For each picture itself with its boxes, then under the map of each concept; with captions.

    maps: by concept (N, rows, columns) in [0, 1], one a picture.
    """
    shown, captions = [], []
    for i, picture in enumerate(pictures):
        shown += [with_boxes(picture, boxes), *(with_attention(picture, own[i]) for own in maps.values())]
        captions += ["", *maps]
    return shown, captions


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = max(1, -(-SIDE // max(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
