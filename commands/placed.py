"""A gallery that follows a layout, with pictures of what was asked and of what was looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ..evaluation.contact_sheet import contact_sheet
from ..evaluation.layout_pictures import attention_rows, with_boxes
from ..inference.text import tokenizers
from ..inference.tickets.attention_maps import capture_maps, find_layer
from ..inference.tickets.concept_tokens import concept_positions
from ..inference.tickets.first_pass import normalised, plain_unet
from ..inference.tickets.layouts import Layout
from .coupled import guided
from .request import Request

BOXES, ATTENTION = "layout.jpg", "attention.jpg"
MOST_ROWS = 4


def draw_laid_out(
    request: Request,
    pipeline: Any,
    draw: Callable[[], list[Image.Image]],
    *,
    prompt: str,
    folder: Path | None,
) -> list[Image.Image]:
    """The pictures of `draw`, one prompt's, under the request's layout.

    folder: where layout.jpg (the pictures with the boxes) and attention.jpg (what the words' attention looks
    at in the first step) are written, if given.
    """
    unet = plain_unet(pipeline)
    with guided(request, pipeline, prompt):
        if folder is None:
            return draw()
        with capture_maps(unet, find_layer(unet)[0]) as maps:
            pictures = draw()
    layout = Layout.load(request.layout)  # type: ignore[arg-type]
    factor = pipeline.vae_scale_factor
    size = (pictures[0].height // factor, pictures[0].width // factor)
    boxes = layout.fractions(size, pixels_per_latent=factor)
    framed = [with_boxes(picture, boxes) for picture in pictures]
    contact_sheet(framed, captions=[prompt] * len(framed), columns=4, tile=256).save(folder / BOXES)
    positions = concept_positions(tokenizers(pipeline)[0], prompt, layout.concepts)
    first = maps[0][-len(pictures) :]  # with guidance the prompt's own rows come last
    block = round((size[0] * size[1] / first.shape[1]) ** 0.5)
    shape = (size[0] // block, size[1] // block)
    found = {
        name: normalised(first[:, :, own].mean(dim=-1)).unflatten(1, shape)
        for name, own in zip(layout.concepts, positions, strict=True)
    }
    shown, captions = attention_rows(pictures[:MOST_ROWS], found, boxes)
    sheet = contact_sheet(shown, captions=captions, columns=1 + len(found), tile=192,
                          title=f"{prompt}: attention at the first step")  # fmt: skip
    sheet.save(folder / ATTENTION)
    return pictures
