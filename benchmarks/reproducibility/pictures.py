"""What every study is trained on and compared by: studio pictures, their latents, the descriptor."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from onbrand.assets.base import encode
from onbrand.assets.descriptor import StudioDescriptor
from onbrand.assets.pictures import drawn_once
from onbrand.data.studio import CLASSES, Product, Shot, draw_products
from onbrand.inference.inverse_problems import decode
from onbrand.train.models import TINY_BASE
from onbrand.whole_file import whole
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

DRAWN, SIDE, SHAPE = (
    64,
    32,
    (4, 8, 8),
)  # pixels as the studio draws them, pixels and latents as the models see them
SETS = {"a": 21, "b": 22, "held out": 23}  # seeds: no shot is in two of them
LARGEST, HELD_OUT = 4096, 1536  # pictures a set


def shots(name: str, count: int, look: str) -> list[Shot]:
    """One product each, the kinds in turn, so that the first n hold every kind as often."""
    seed = SETS[name]
    return [Shot(look, DRAWN, seed, i, (_product(seed, i, look),)) for i in range(count)]


def size_of(name: str) -> int:
    return HELD_OUT if name == "held out" else LARGEST


def class_ids(count: int) -> Tensor:
    return torch.arange(count) % len(CLASSES)


def _product(seed: int, index: int, look: str) -> Product:
    drawn = draw_products(np.random.default_rng([seed, index]), look)[0]
    return Product(CLASSES[index % len(CLASSES)], drawn.colour, drawn.finish)


def pixels(work: Path, name: str, count: int, look: str = "wild") -> np.ndarray:
    """(count, 32, 32, 3) uint8, the first of the set, drawn once."""
    file = work / "pictures" / f"{look} {name}.npy"
    every = size_of(name)
    large = drawn_once(shots(name, every, look), file=file)[0][:count]
    halves = large.reshape(count, SIDE, 2, SIDE, 2, 3).mean(axis=(2, 4))
    return halves.round().astype(np.uint8)


def latents(work: Path, name: str, count: int, look: str = "wild") -> Tensor:
    """(count, 4, 8, 8) scaled latents, the first of the set, encoded once."""
    file = work / "pictures" / f"{look} {name}.safetensors"
    if not file.exists():
        drawn = pixels(work, name, size_of(name), look)
        with whole(file) as beside:
            save_file({"latents": encode(vae(), drawn)}, beside)
    return load_file(file)["latents"][:count]


@cache
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(TINY_BASE, subfolder="vae", torch_dtype=torch.float32).eval()


@cache
def descriptor() -> StudioDescriptor:
    return StudioDescriptor()


@torch.no_grad()
def drawn(x_0: Tensor) -> list[Image.Image]:
    """Pictures of scaled latents."""
    found = torch.cat([decode(vae(), part) for part in x_0.split(64)])
    levels = ((found.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in levels]


def features(x_0: Tensor) -> Tensor:
    """(n, 128) descriptor rows of the pictures of scaled latents."""
    return descriptor()(drawn(x_0))
