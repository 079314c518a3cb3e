"""The pictures of a cell: the same products and the same noises in every one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from onbrand.evaluation.look.foreground import product_mask
from onbrand.inference.generate import generate
from onbrand.inference.load import load_pipeline, to_draw
from onbrand.pca import Sampler
from onbrand.whole_file import whole
from PIL import Image
from rich.progress import track

from .catalogue import SETS, asked, real_pictures, rows_of
from .cells import Cell
from .starts import x_start_of
from .trainings import trained

BATCH = 32


def pictures_of(cell: Cell, *, pictures: int, work: Path) -> np.ndarray:
    """(N, 64, 64, 3) uint8: the first products asked for of each set as the cell draws them, kept in WORK."""
    file = work / "drawn" / f"{cell.name.replace(' / ', '--').replace(' ', '_')}.npy"
    if not file.exists() or len(np.load(file, mmap_mode="r")) < len(SETS) * pictures:
        drawn = _drawn(cell, rows_of(pictures), work=work)
        with whole(file) as beside, beside.open("wb") as written:
            np.save(written, drawn)
    return np.load(file, mmap_mode="r")


def _drawn(cell: Cell, chosen: list[int], *, work: Path) -> np.ndarray:
    run = trained(cell.training, cell.seed, work=work)
    pipeline = to_draw(load_pipeline(run / "model", torch_dtype=torch.float32, plain=True), "cpu")
    products = asked()
    conditions = shown(chosen, work=work) if hasattr(pipeline, "controlnet") else None
    x_start = x_start_of(cell.start, products, pipeline, training=cell.training, seed=cell.seed, work=work)
    pictures = []
    for first in track(range(0, len(chosen), BATCH), description=cell.name):
        batch = slice(first, first + BATCH)
        rows = chosen[batch]
        pictures += generate(
            pipeline,
            [products[row].words() for row in rows],
            images=conditions and conditions[batch],
            indices=rows,
            sampler=Sampler(cell.scheduler, cell.steps, cell.spacing),
            guidance_scale=cell.guidance_scale,
            guidance_rescale=cell.rescale,
            batch_size=BATCH,
            **({} if x_start is None else {"x_start": x_start[rows]}),
        )
    return np.stack([np.asarray(picture) for picture in pictures])


def shown(chosen: list[int], *, work: Path) -> list[Image.Image]:
    """What a ControlNet sees for each row: of the product's first real picture, the product on black."""
    wanted, real = asked(), real_pictures(work=work)
    firsts = [real[wanted.index(wanted[row])] for row in chosen]
    return [
        Image.composite(picture, Image.new("RGB", picture.size), product_mask(picture)) for picture in firsts
    ]
