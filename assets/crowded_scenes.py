"""Scenes of many products side by side, and the pictures that tell a model where, or in which colours."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from PIL import Image

from ..data.studio import CLASSES, COLOURS, Product
from ..data.studio_backgrounds import wild_background
from ..data.studio_camera import Light, Placement, to_picture
from ..evaluation.detection import Box
from .studio_scenes import Scene, painted

# the longer side of a product, as a share of the frame's, by the number of products
SIDES = {1: (0.4, 0.9), 2: (0.35, 0.55), 3: (0.3, 0.48), 4: (0.28, 0.42), 5: (0.27, 0.38), 6: (0.27, 0.35)}
APART = 0.48  # of two products' sides together: less would cover a neighbour
DARK, BRIGHT = 90, 255
GREY = 128
SPOT = 0.07  # standard deviation of a spot of colour, as a share of the frame's side
JITTER = 0.02  # of a spot's centre


def crowded_scene(index: int, count: int, *, size: int = 64, seed: int) -> Scene:
    """Plain products of `count` kinds in any colours, beside one another before a wild background.

    Raises ValueError on a count outside [1, 6].
    """
    if count not in SIDES:
        raise ValueError(f"count must be from 1 to {max(SIDES)}, got {count}")
    rng = np.random.default_rng([seed, index, count])
    canvas = wild_background(rng, size).astype(np.float32)
    light = Light(rng.uniform(-1, 1), rng.uniform(0.1, 0.5), rng.choice([0.0, rng.uniform(0.1, 0.5)]))
    kinds = rng.choice(len(CLASSES), count, replace=False)
    colours = list(COLOURS)
    products = tuple(Product(CLASSES[k], colours[rng.integers(len(colours))]) for k in kinds)
    owner = painted(canvas, rng, products, _beside(rng, count), light)
    exposure = rng.uniform(0.85, 1.1) * (1 + rng.normal(0, 0.02, 3))
    picture = to_picture(canvas * exposure.astype(np.float32), rng, noise=rng.uniform(0.002, 0.012))
    return Scene(picture, owner, products)


def crowded_scenes(indices: Iterable[int], counts: Iterable[int], *, seed: int) -> list[Scene]:
    """The scenes of these indices and counts, drawn in parallel."""
    asked = [(index, count, seed) for index, count in zip(indices, counts, strict=True)]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_scene, asked, chunksize=64))


def kinds_picture(boxes: Iterable[tuple[str, Box]], *, size: int = 64) -> Image.Image:
    """Every box (kind, in fractions) filled on black; each channel, dark or bright, is a bit of the kind."""
    canvas = np.zeros((size, size, 3), dtype=np.uint8)
    for kind, box in boxes:
        x_0, y_0, x_1, y_1 = (round(edge * size) for edge in box)
        code = CLASSES.index(kind)
        canvas[y_0:y_1, x_0:x_1] = [BRIGHT if code >> bit & 1 else DARK for bit in range(3)]
    return Image.fromarray(canvas)


def colours_picture(
    boxes: Iterable[tuple[str, Box]], rng: np.random.Generator, *, size: int = 64
) -> Image.Image:
    """A blurred spot of every box's colour on grey, near the box's centre and of one size for all boxes."""
    canvas = np.full((size, size, 3), GREY, dtype=np.float32)
    centres = (np.arange(size) + 0.5) / size
    for colour, (x_0, y_0, x_1, y_1) in boxes:
        x, y = np.array([x_0 + x_1, y_0 + y_1]) / 2 + rng.normal(0, JITTER, 2)
        squared = (centres[None, :] - x) ** 2 + (centres[:, None] - y) ** 2
        share = np.exp(-squared / (2 * SPOT**2))[..., None]
        canvas += share * (np.array(COLOURS[colour]) - canvas)
    return Image.fromarray((canvas + 0.5).astype(np.uint8))


def _scene(asked: tuple[int, int, int]) -> Scene:
    index, count, seed = asked
    return crowded_scene(index, count, seed=seed)


def _beside(rng: np.random.Generator, count: int) -> list[Placement]:
    """Placements apart from one another, inside the frame; started again whenever one finds no room."""
    while True:
        placements: list[Placement] = []
        for _ in range(60):
            side = rng.uniform(*SIDES[count])
            x, y = (rng.uniform(0.49 * side, 1 - 0.49 * side) for _ in range(2))
            if all(max(abs(x - o.x), abs(y - o.y)) > APART * (side + o.size) for o in placements):
                placements.append(Placement(x, y, side, float(rng.normal(0, 6)), bool(rng.random() < 0.5)))
            if len(placements) == count:
                return placements
