"""What the pictures of a cell are worth: the audit, and whether they show what was asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onbrand.assets.classifier import COLOUR_NAMES
from onbrand.assets.gate import load_classifier
from onbrand.assets.vae import to_pixels
from onbrand.data.studio import CLASSES, Product
from onbrand.evaluation import Limits, audit
from onbrand.inference.load import load_pipeline
from onbrand.train.judge import fix_limits
from onbrand.train.models import TINY_BASE
from onbrand.train.prepare import encode_part, split_catalogue
from PIL import Image

from .catalogue import PICTURES, SETS, asked, real_pictures, rows_of
from .cells import Cell
from .draw import pictures_of
from .trainings import config_of

RESULTS = Path(__file__).with_name("results.jsonl")
REAL = "real pictures"  # after the autoencoder's round trip, as limits are


def results() -> dict[str, dict[str, Any]]:
    """Every line measured so far, by the name of its cell; of two lines the later one."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {line["cell"]: line for line in map(json.loads, lines)}


def measure(cell: Cell, *, pictures: int = PICTURES, work: Path) -> dict[str, Any]:
    """The line of a cell, measured if there is none of so many pictures of each set."""
    line = results().get(cell.name)
    if line is not None and line[SETS[0]]["n"] >= pictures:
        return line
    return _add(cell.name, pictures_of(cell, pictures=pictures, work=work), work=work)


def measure_real(*, work: Path) -> dict[str, Any]:
    """The same of real pictures of what was asked for."""
    return results().get(REAL) or _add(REAL, _through_the_vae(real_pictures(work=work)), work=work)


def _add(name: str, pictures: np.ndarray, *, work: Path) -> dict[str, Any]:
    """Judges pictures in the order of `rows_of` and adds the line to the results."""
    line: dict[str, Any] = {"cell": name}
    count = len(pictures) // len(SETS)
    products = [asked()[row] for row in rows_of(count)]
    for i, prompts in enumerate(SETS):
        own = slice(i * count, (i + 1) * count)
        line[prompts] = _judged(pictures[own], products[own], limits=_limits(work))
    with RESULTS.open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    return line


def _judged(pictures: np.ndarray, products: Sequence[Product], *, limits: Limits) -> dict[str, Any]:
    """Rates in [0, 1]; `agreement`: mean probability of the kind and colour asked for; in hexadecimal `kept`
    and `right`: which pictures passed the audit, and which show that kind in that colour, as bits;
    `agreed`: the probability of each in 255ths."""
    report = audit(
        [Image.fromarray(picture) for picture in pictures],
        limits=limits,
        classes=[product.kind for product in products],
    )
    kind, colour, agreement = read(pictures, products)
    return {
        "n": len(products),
        "pass": round(report.pass_rate, 4),
        "rules": {rule: round(rate, 4) for rule, rate in report.rules.items()},
        "class right": round(float(kind.mean()), 4),
        "colour right": round(float(colour.mean()), 4),
        "agreement": round(float(agreement.mean()), 4),
        "kept": np.packbits(report.passed).tobytes().hex(),
        "right": np.packbits(kind & colour).tobytes().hex(),
        "agreed": (255 * agreement).round().astype(np.uint8).tobytes().hex(),
    }


def values(line: dict[str, Any], prompts: str, key: str) -> np.ndarray:
    """`kept`, `right` or `agreed` of each picture of a set, (n,) float64 in [0, 1]."""
    packed = np.frombuffer(bytes.fromhex(line[prompts][key]), dtype=np.uint8)
    return packed / 255 if key == "agreed" else np.unpackbits(packed, count=line[prompts]["n"]).astype(float)


@torch.no_grad()
def read(pictures: np.ndarray, products: Sequence[Product]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each picture's likeliest kind is the product's, and that kind's colour (N,) bool; and the
    classifier's probability of that kind in that colour (N,)."""
    classifier = load_classifier()
    logits = torch.cat(
        [classifier(to_pixels(np.asarray(pictures[i : i + 128]))) for i in range(0, len(pictures), 128)]
    )
    rows = torch.arange(len(products))
    kinds = torch.tensor([CLASSES.index(product.kind) for product in products])
    colours = torch.tensor([COLOUR_NAMES.index(product.colour) for product in products])
    of_kind = logits[rows, kinds]
    probability = of_kind[:, 0].sigmoid() * of_kind[:, 1:].softmax(-1)[rows, colours]
    kind_right = logits[..., 0].argmax(-1) == kinds
    return kind_right.numpy(), (of_kind[:, 1:].argmax(-1) == colours).numpy(), probability.numpy()


@cache
def _limits(work: Path) -> Limits:
    """The catalogue's own, the same for every cell."""
    config = config_of("offset", 0, work=work)
    pipeline = load_pipeline(TINY_BASE, torch_dtype=torch.float32)
    train, _ = split_catalogue(config)
    part = encode_part(train, pipeline, config, cache_dir=work / "latents", device="cpu")
    return fix_limits(part, pipeline.vae)


@torch.no_grad()
def _through_the_vae(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Encoded and decoded again, (N, 64, 64, 3) uint8."""
    vae = load_pipeline(TINY_BASE, torch_dtype=torch.float32).vae
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    parts = [
        vae.decode(vae.encode(to_pixels(pixels[i : i + 64])).latent_dist.mean).sample
        for i in range(0, len(pixels), 64)
    ]
    decoded = (torch.cat(parts).clamp(-1, 1) + 1) * 127.5
    return decoded.round().byte().permute(0, 2, 3, 1).numpy()
