"""Traces side by side on one sheet: a column a step, two rows a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from ..evaluation.contact_sheet import GAP, INK, MARGIN, NEUTRAL, PAPER, QUIET
from .trace import TraceStep
from .vae import pictures_of

TILE = 128
LABEL = 170
MOST_COLUMNS = 25
BETWEEN = 28  # pixels between one trace and the next
ROWS = ("x_t, as the network sees it", "x_0, as it predicts it")


def trace_sheet(pipeline: Any, traces: Mapping[str, Sequence[TraceStep]], *, title: str) -> Image.Image:
    """A sheet with a column for each timestep and two rows for each trace: x_t and the predicted x_0.

    traces: by name, in the order of the rows, of the same sampler. Of more than 25 steps evenly spread
    ones are shown, the first and the last among them.
    """
    shown = {name: _spread(steps) for name, steps in traces.items()}
    decoded = {
        name: [pictures_of(pipeline.vae, torch.stack(latents)) for latents in _by_row(steps)]
        for name, steps in shown.items()
    }
    steps = next(iter(shown.values()))
    sizes = decoded[next(iter(decoded))][0][0].size
    tile = (round(TILE * sizes[0] / max(sizes)), round(TILE * sizes[1] / max(sizes)))
    large, small = ImageFont.load_default(20), ImageFont.load_default(14)
    top = MARGIN + 66
    trace_height = 2 * (tile[1] + GAP // 2) + BETWEEN
    width = 2 * MARGIN + LABEL + len(steps) * (tile[0] + GAP // 2)
    sheet = Image.new("RGB", (max(width, 640), top + len(traces) * trace_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    title = " ".join(title.split())  # one line
    while title and draw.textlength(title, font=large) > sheet.width - 2 * MARGIN:
        title = f"{title[:-2]}…"
    draw.text((MARGIN, MARGIN - 6), title, INK, font=large)
    xs = [MARGIN + LABEL + column * (tile[0] + GAP // 2) for column in range(len(steps))]
    draw.text((MARGIN, top - 26), "timestep", QUIET, font=small)
    for x, step in zip(xs, steps, strict=True):
        draw.text((x + tile[0] / 2, top - 26), f"{step.timestep:g}", INK, font=small, anchor="ma")
    for place, (name, rows) in enumerate(decoded.items()):
        y = top + place * trace_height
        for row, (label, pictures) in enumerate(zip(ROWS, rows, strict=True)):
            at = y + row * (tile[1] + GAP // 2)
            if row == 0:
                draw.multiline_text((MARGIN, at), name.replace(" ", "\n", 1), INK, font=large)
            text = label.replace(", ", ",\n")
            draw.multiline_text((MARGIN, at + tile[1] - 4), text, QUIET, font=small, anchor="ld")
            for x, picture in zip(xs, pictures, strict=True):
                sheet.paste(picture.resize(tile, Image.Resampling.LANCZOS), (x, at))
                draw.rectangle((x, at, x + tile[0] - 1, at + tile[1] - 1), outline=NEUTRAL)
    return sheet


def _by_row(steps: Sequence[TraceStep]) -> list[list[torch.Tensor]]:
    return [[step.x_t for step in steps], [step.x_0 for step in steps]]


def _spread(steps: Sequence[TraceStep]) -> list[TraceStep]:
    if len(steps) <= MOST_COLUMNS:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (MOST_COLUMNS - 1))] for i in range(MOST_COLUMNS)]
