"""A gallery that follows a layout, with pictures of what was asked and of what was looked at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from ..evaluation.contact_sheet import contact_sheet
from ..evaluation.layout_pictures import attention_rows, with_boxes
from ..inference.tickets.attention_maps import capture_maps, find_layer
from ..inference.tickets.first_pass import normalised, plain_unet
from ..inference.tickets.guidance import words_in
from ..inference.tickets.layouts import Layout
from .coupled import guided
from .pictures import ATTENTION, BOXES
from .request import Request

MOST_ROWS = 4


def draw_laid_out(
    request: Request,
    pipeline: Any,
    draw: Callable[..., list[Image.Image]],
    *,
    prompt: str,
    folder: Path | None,
) -> list[Image.Image]:
    """The pictures of `draw`, one prompt's, under the request's layout.

    folder: where layout.jpg (the pictures with the boxes) and, of a UNet with a layer for it, attention.jpg
    (what the words' attention looks at in the first step) are written, if given.
    """
    unet = plain_unet(pipeline)
    layer, block = _layer(unet)
    first: list[Any] = []
    with guided(request, pipeline, prompt), ExitStack() as stack:
        if folder is None:
            return draw()
        maps = stack.enter_context(capture_maps(unet, layer)) if layer else []

        def keep(pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            # initializers that look at the network have had passes of their own before
            if step == 0 and maps:
                first.append(maps[-1])
            maps.clear()
            return {}

        pictures = draw(callback_on_step_end=keep)
    layout = Layout.load(request.layout)  # type: ignore[arg-type]
    factor = pipeline.vae_scale_factor
    size = (pictures[0].height // factor, pictures[0].width // factor)
    boxes = layout.fractions(size, pixels_per_latent=factor)
    framed = [with_boxes(picture, boxes) for picture in pictures]
    contact_sheet(framed, captions=[prompt] * len(framed), columns=4, tile=256).save(folder / BOXES)
    if not first:
        return pictures
    attention = first[0][-len(pictures) :]  # with guidance the prompt's own rows come last
    shape = [-(-side // block) for side in size]
    words = words_in(pipeline, prompt, layout.concepts)
    found = {
        name: normalised(attention[:, :, own].mean(dim=-1)).unflatten(1, shape)
        for name, own in zip(layout.concepts, words, strict=True)
    }
    shown, captions = attention_rows(pictures[:MOST_ROWS], found, boxes)
    sheet = contact_sheet(shown, captions=captions, columns=1 + len(found), tile=192,
                          title=f"{prompt}: attention at the first step")  # fmt: skip
    sheet.save(folder / ATTENTION)
    return pictures


def _layer(unet: Any) -> tuple[str | None, int]:
    """The layer that shows the words' attention and the latents a cell covers; None where there is none."""
    try:
        return find_layer(unet)
    except ValueError:
        return None, 1
