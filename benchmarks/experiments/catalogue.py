"""The catalogue of the experiments: studio pictures without some products, kept for prompts that are new."""

from __future__ import annotations

import json
from functools import cache
from itertools import product as every
from pathlib import Path

import numpy as np
from onbrand.assets.pictures import drawn_once
from onbrand.data.studio import CLASSES, COLOURS, FINISHES, Product, Shot
from onbrand.whole_file import whole
from PIL import Image

SIDE = 64
LARGEST = 5000  # pictures a catalogue may have
ENOUGH = 10  # a kind, for the first pictures to have them all
CATALOGUE_SEED, REAL_SEED = 21, 22
NEW_SHARE = 0.2
PICTURES = 768  # of each set of prompts, at most
SETS = ("catalogue", "new")


@cache
def products() -> dict[str, list[Product]]:
    """All 240 products: those of the catalogue, and the fifth of every kind that it never shows."""
    found: dict[str, list[Product]] = {name: [] for name in SETS}
    rng = np.random.default_rng(CATALOGUE_SEED)
    for kind in CLASSES:
        own = [Product(kind, colour, finish) for colour, finish in every(COLOURS, FINISHES)]
        kept = rng.permutation(len(own)) >= NEW_SHARE * len(own)
        for product, known in zip(own, kept, strict=True):
            found["catalogue" if known else "new"].append(product)
    return found


def catalogue_folder(pictures: int, *, work: Path) -> Path:
    """An image folder of so many pictures, written once; a larger one has those of a smaller one too."""
    folder = work / f"catalogue_{pictures}"
    if folder.exists():
        return folder
    shown, rows = _shown(), []
    with whole(folder) as beside:
        beside.mkdir()
        for i in _chosen(pictures):
            product = shown[i]
            Shot("on-brand", SIDE, CATALOGUE_SEED, i, (product,)).draw().save(beside / f"{i:05d}.png")
            row = {"file_name": f"{i:05d}.png", "text": product.words(), "class": product.kind}
            rows.append(json.dumps(row) + "\n")
        (beside / "metadata.jsonl").write_text("".join(rows))
    return folder


def _shown() -> list[Product]:
    """The product of every picture that a catalogue may have."""
    known = products()["catalogue"]
    order = np.random.default_rng(CATALOGUE_SEED).permutation(LARGEST)
    return [known[i % len(known)] for i in order.tolist()]


def _chosen(pictures: int) -> list[int]:
    """The first so many; of few, which may lack a kind, the first of every kind in turn."""
    if pictures >= ENOUGH * len(CLASSES):
        return list(range(pictures))
    kinds = [product.kind for product in _shown()]
    earlier = [kinds[:i].count(kind) for i, kind in enumerate(kinds)]
    return sorted(sorted(range(LARGEST), key=lambda i: (earlier[i], i))[:pictures])


def asked() -> list[Product]:
    """What cells draw: each set's products again and again, the catalogue's first."""
    return [known[i % len(known)] for known in products().values() for i in range(PICTURES)]


def rows_of(pictures: int) -> list[int]:
    """The first so many rows of `asked` of each set, which a smaller cell draws."""
    return [first + i for first in range(0, len(SETS) * PICTURES, PICTURES) for i in range(pictures)]


def real_pictures(*, work: Path) -> list[Image.Image]:
    """A real picture of every product asked for, none of them in the catalogue: what no model can beat."""
    shots = [Shot("on-brand", SIDE, REAL_SEED, i, (product,)) for i, product in enumerate(asked())]
    pixels, _ = drawn_once(shots, file=work / "real.npy")
    return [Image.fromarray(picture) for picture in np.asarray(pixels)]
