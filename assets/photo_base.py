"""A base trained on photographs: `python -m onbrand.assets.photo_base PHOTOS ... --work WORK --out FOLDER`

The tiny base's autoencoder, text encoder and UNet, trained from nothing on catalogues of any look at 64
pixels: image folders, parquet files or hub ids, as `onbrand train` takes them. Resumes as the build does.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ..data.catalogue import Catalogue, load_catalogue
from ..data.transform import ImageTransform
from ..evaluation.limits import write_json
from ..whole_file import whole
from . import base as base_stage
from . import vae as vae_stage
from .build import build_base

SIDE = 64
VOCABULARY = 400  # the captions' most frequent words


def photo_base(
    photos: Annotated[list[str], typer.Argument(help="Catalogues: folders, parquet files or hub ids")],
    work: Annotated[Path, typer.Option(help="Keeps pictures, checkpoints and loss curves")],
    out: Annotated[Path, typer.Option(help="The diffusers folder to write")],
    vae_steps: int = vae_stage.STEPS,
    base_steps: int = base_stage.STEPS,
) -> None:
    """Trains a base on all pictures of the catalogues, cropped to squares, and on each of them mirrored.

    Raises ValueError on a WORK that was begun with other catalogues.
    """
    _check_same(photos, work=work)
    catalogues = [load_catalogue(source) for source in photos]
    captions = [caption for catalogue in catalogues for caption in catalogue.captions]
    pictures = _pixels(catalogues, work=work)
    build_base(
        np.concatenate([pictures, pictures[:, :, ::-1]]),
        [*captions, *captions],
        seen_by_vae=pictures,
        words=frequent_words(captions),
        work=work,
        out=out,
        steps={"vae": vae_steps, "base": base_steps},
        told=lambda vae: {
            "command": "python -m onbrand.assets.photo_base PHOTOS ... --work WORK --out FOLDER",
            "pictures": len(captions),
        },
    )


def frequent_words(captions: list[str]) -> list[str]:
    """The most frequent words and marks of the captions, in lower case."""
    counts = Counter(word for caption in captions for word in re.findall(r"\w+|[,.]", caption.lower()))
    return [word for word, _ in counts.most_common(VOCABULARY)]


def _check_same(photos: list[str], *, work: Path) -> None:
    """What WORK keeps is of these catalogues."""
    file = work / "photos.json"
    if not file.exists():
        write_json(photos, file)
    if (begun := json.loads(file.read_text())) != photos:
        raise ValueError(
            f"photos must be those that {work} was begun with, {', '.join(begun)}, got {', '.join(photos)}"
        )


def _pixels(catalogues: list[Catalogue], *, work: Path) -> np.ndarray:
    """(N, 64, 64, 3) uint8, the middle square of each picture; kept in WORK."""
    file = work / "photos.npy"
    if not file.exists():
        fit = ImageTransform(SIDE, SIDE, fit="crop")
        pixels = np.stack(
            [
                np.asarray(fit.resize(catalogue.image(i)))
                for catalogue in catalogues
                for i in range(len(catalogue))
            ]
        )
        with whole(file) as beside, beside.open("wb") as written:
            np.save(written, pixels)
    return np.load(file)


if __name__ == "__main__":
    typer.run(photo_base)
