"""Studio scenes with the truth about them: what is where, pixel by pixel."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..data.studio import CLASSES, COLOURS, FINISHES, Product, Shot, _pigment, _wild_placements
from ..data.studio_backgrounds import wild_background
from ..data.studio_camera import Light, Placement, fitted, mask_of, paint, to_picture
from ..data.studio_shapes import PRODUCTS, Part
from ..evaluation.detection import Box
from ..evaluation.look.box import box_of as pixels_box

NOBODY = -1
FREE_SEED = 11
WHITE_SHARE = 0.4  # of the free scenes: what models trained on the on-brand look paint
SEEN = 0.25  # a product counts if this much of it is neither covered by others nor outside the frame


@dataclass(frozen=True)
class Scene:
    """A picture, and whose every pixel is: owner (size, size) int8, the product's index or NOBODY."""

    picture: Image.Image
    owner: np.ndarray
    products: tuple[Product, ...]

    def boxes(self) -> list[tuple[Product, Box]]:
        """The products that can be seen, each with the box of its visible pixels, in fractions."""
        found = [(product, self.owner == i) for i, product in enumerate(self.products)]
        return [(product, box_of(mask)) for product, mask in found if mask.any()]


def box_of(mask: np.ndarray) -> Box:
    """The box (x0, y0, x1, y1) around a mask's pixels (H, W) bool, in fractions of width and height."""
    height, width = mask.shape
    left, top, right, bottom = pixels_box(mask)
    return left / width, top / height, right / width, bottom / height


def wild_scene(shot: Shot) -> Scene:
    """A shot of the wild look: the picture that `shot.draw()` gives, to the bit."""
    rng, products = shot.generator(1), shot.cast()
    canvas = wild_background(rng, shot.size)
    light = Light(rng.uniform(-1, 1), rng.uniform(0.1, 0.5), rng.choice([0.0, rng.uniform(0.1, 0.5)]))
    owner = painted(canvas, rng, products, _wild_placements(rng, len(products)), light)
    exposure = rng.uniform(0.72, 1.12) * (1 + rng.normal(0, 0.03, 3))
    picture = to_picture(canvas * exposure.astype(np.float32), rng, noise=rng.uniform(0.002, 0.012))
    return Scene(picture, owner, products)


def free_scene(index: int, *, size: int = 64, seed: int = FREE_SEED) -> Scene:
    """Products as a layout may want them: one to four of any kind, large and small, anywhere."""
    rng = np.random.default_rng([seed, index])
    white = rng.random() < WHITE_SHARE
    canvas = np.full((size, size, 3), rng.uniform(0.95, 1)) if white else wild_background(rng, size)
    canvas = canvas.astype(np.float32)
    light = Light(rng.uniform(-1, 1), rng.uniform(0.1, 0.5), rng.choice([0.0, rng.uniform(0.1, 0.5)]))
    products: list[Product] = []
    placements: list[Placement] = []
    for _ in range(rng.choice([1, 2, 3, 4], p=[0.25, 0.3, 0.25, 0.2])):
        placement = _apart(rng, placements)
        if placement is None:
            break
        kind, colour = CLASSES[rng.integers(len(CLASSES))], list(COLOURS)[rng.integers(len(COLOURS))]
        products.append(Product(kind, colour, FINISHES[rng.choice(3, p=[0.5, 0.25, 0.25])]))
        placements.append(placement)
    owner = painted(canvas, rng, tuple(products), placements, light)
    exposure = 1.0 if white else rng.uniform(0.72, 1.12) * (1 + rng.normal(0, 0.03, 3))
    return Scene(to_picture(canvas * exposure, rng, noise=rng.uniform(0.002, 0.012)), owner, tuple(products))


def scenes(shots: list[Shot], free: range) -> list[Scene]:
    """Wild shots and free scenes, drawn in parallel."""
    with ProcessPoolExecutor() as pool:
        return [*pool.map(wild_scene, shots, chunksize=64), *pool.map(free_scene, free, chunksize=64)]


def _apart(rng: np.random.Generator, others: list[Placement]) -> Placement | None:
    """A placement beside the others, None if a few tries find none."""
    for _ in range(20):
        size = rng.uniform(0.25, 0.6 if others else 0.95)
        room = 0.5 - 0.4 * size
        x, y = (0.5 + rng.uniform(-room, room) for _ in range(2))
        if all(max(abs(x - o.x), abs(y - o.y)) > 0.45 * (size + o.size) for o in others):
            return Placement(x, y, size, float(rng.normal(0, 10)), bool(rng.random() < 0.5))
    return None


def painted(
    canvas: np.ndarray,
    rng: np.random.Generator,
    products: tuple[Product, ...],
    placements: list[Placement],
    light: Light,
) -> np.ndarray:
    """Paints the products one over the other and returns whose each pixel is."""
    size = canvas.shape[0]
    masks: list[np.ndarray] = []
    for product, placement in zip(products, placements, strict=True):
        parts = PRODUCTS[product.kind](rng)
        colour = _pigment(rng, product.colour)
        paint(canvas, parts, placement, colour=colour, finish=product.finish, light=light)
        masks.append(_outline(parts, placement, size))
    owner = np.full((size, size), NOBODY, dtype=np.int8)
    for index, mask in enumerate(masks):
        owner[mask] = index
    for index, mask in enumerate(masks):
        if (owner == index).sum() < SEEN * mask.sum():
            owner[owner == index] = NOBODY
    return owner


def _outline(parts: list[Part], placement: Placement, size: int) -> np.ndarray:
    """The pixels that a product covers by half or more, (size, size) bool."""
    moved, matrix = fitted(parts, placement)
    clear = np.ones((size, size), dtype=np.float32)
    for part in moved:
        clear *= 1 - mask_of(part.outline, matrix, size)
    return clear <= 0.5
