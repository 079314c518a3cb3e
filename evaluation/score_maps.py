"""Where noises hold what the network takes for a concept: their blocks' scores, drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .contact_sheet import INK, MARGIN, PAPER, QUIET
from .pixels import Array, to_array

LOW, HIGH = np.array([24, 34, 66]), np.array([255, 196, 61])  # scores 0 and 1


def score_maps(concepts: Sequence[str], scores: Array, *, noises: int = 8, tile: int = 96) -> Image.Image:
    """A row a concept, a column a noise: each block's mean score against all other concepts.

    scores: (concepts, concepts, N, rows, columns) in [0, 1], nan where there is none; of the first noises.
    Returns an RGB picture. Raises ValueError on another shape.
    """
    table = to_array(scores)
    if table.ndim != 5 or table.shape[0] != table.shape[1] or table.shape[0] != len(concepts):
        n = len(concepts)
        raise ValueError(f"scores must be of shape ({n}, {n}, N, rows, columns), got {table.shape}")
    known = ~np.isnan(table)
    means = np.where(known, table, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    shown = min(noises, means.shape[1])
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    left = MARGIN + 12 + round(max(font.getlength(name) for name in concepts))
    step = tile + 8
    sheet = Image.new("RGB", (left + shown * step + MARGIN, 2 * MARGIN + len(concepts) * step + 20), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column in range(shown):
        draw.text((left + column * step, MARGIN - 8), f"noise {column}", QUIET, font=small)
    for row, name in enumerate(concepts):
        top = MARGIN + 14 + row * step
        draw.text((MARGIN, top + tile / 2), name, INK, font=font, anchor="lm")
        for column in range(shown):
            colours = LOW + means[row, column][..., None] * (HIGH - LOW)
            blocks = Image.fromarray(colours.round().astype(np.uint8))
            place = (left + column * step, top)
            sheet.paste(blocks.resize((tile, tile), Image.Resampling.NEAREST), place)
    foot = "mean score against the other concepts: dark 0, bright 1"
    draw.text((left, sheet.height - MARGIN), foot, QUIET, font=small, anchor="lb")
    return sheet
