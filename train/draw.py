"""Pictures of a catalogue's captions, drawn by a pipeline, the work divided over the processes of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from ..configs.schema import AuditConfig
from ..data.catalogue import Catalogue
from ..data.processes import ALONE, Processes
from ..inference.generate import generate
from ..inference.vae import pictures_of
from ..pca import Sampler
from .part import Part


def decode_rows(
    vae: Any, part: Part, rows: Sequence[int], *, processes: Processes = ALONE
) -> list[Image.Image]:
    """The pictures of cached latents, after the VAE's round trip, in the order of rows."""
    drawn: list[tuple[int, Image.Image]] = []
    for own in part.by_size(rows, processes.share(range(len(rows)))).values():
        latents = part.cache.means([rows[i] for i in own])
        drawn += zip(own, pictures_of(vae, latents), strict=True)
    return _all_in_order(drawn, processes)


def _all_in_order(drawn: list[tuple[int, Image.Image]], processes: Processes) -> list[Image.Image]:
    """The pictures of all processes, by their places."""
    return [picture for _, picture in sorted(processes.gather(drawn), key=lambda pair: pair[0])]


def round_robin(catalogue: Catalogue, count: int, *, again: bool = False) -> list[int]:
    """Rows of at most `count` pictures, one class after the other, so that none is left out.

    again: go round once more where there are fewer, so that there are exactly `count`.
    """
    by_class: list[list[int]] = [[] for _ in catalogue.class_names]
    for row, class_id in enumerate(catalogue.class_ids.tolist()):
        by_class[class_id].append(row)
    longest = max(map(len, by_class))
    order = [rows[turn] for turn in range(longest) for rows in by_class if turn < len(rows)]
    return [order[i % len(order)] for i in range(count)] if again else order[:count]


def draw(
    pipeline: Any,
    part: Part,
    rows: Sequence[int],
    *,
    start: str,
    settings: AuditConfig,
    seed: int = 0,
    processes: Processes = ALONE,
    latents_only: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Image.Image]:
    """A picture of each row's caption, at the size of its bucket, under its condition where there is one.

    The i-th picture's noise is that of seed + i, so equal seeds give every model and start equal noises,
    and any number of processes the same pictures. latents_only: the pipeline leaves decoding to its VAE in
    the VAE's own precision.
    """
    drawn: list[tuple[int, Image.Image]] = []
    catalogue = part.catalogue
    for (height, width), own in part.by_size(rows, processes.share(range(len(rows)))).items():
        mine = [rows[i] for i in own]
        # a pooled mixture draws the class as well
        has_class = pipeline.start_distribution is not None and pipeline.start_distribution.family != "pooled"
        takes_condition = part.condition is not None and hasattr(pipeline, "controlnet")
        pictures: list[Any] = generate(
            pipeline,
            [catalogue.captions[row] for row in mine],
            class_names=[catalogue.pictures[row].class_name for row in mine] if has_class else None,
            images=[part.condition.image(row) for row in mine] if takes_condition else None,  # type: ignore[union-attr]
            indices=own,
            start=start,
            sampler=Sampler(settings.scheduler, settings.steps),
            guidance_scale=settings.guidance_scale,
            seed=seed,
            height=height,
            width=width,
            advance=advance,
            output_type="latent" if latents_only else "pil",
        )
        if latents_only:
            with torch.autocast(pipeline.vae.device.type, enabled=False):
                pictures = pictures_of(pipeline.vae, torch.stack(pictures))
        drawn += zip(own, pictures, strict=True)
    return _all_in_order(drawn, processes)
