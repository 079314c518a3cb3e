"""The photo studio: a product catalogue drawn by code, deterministic by seed, at any size from 64 to 512.

Two looks. `on-brand` is what a retailer asks for: white background, centred, uncropped, one light, one soft
shadow, with the small variation of a real camera. `wild` is everything else: any background, position, scale,
rotation, crop and light, one to three products in a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from PIL import Image

from .catalogue import Catalogue
from .picture import Picture
from .rows import check_name
from .studio_backgrounds import wild_background
from .studio_camera import Light, Placement, paint, to_picture
from .studio_shapes import PRODUCTS

CLASSES = sorted(PRODUCTS)
COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (38, 38, 42), "blue": (40, 84, 196), "brown": (122, 74, 40), "green": (46, 140, 62),
    "orange": (240, 132, 28), "pink": (240, 140, 178), "purple": (122, 60, 168), "red": (206, 36, 42),
    "teal": (22, 148, 150), "yellow": (242, 206, 44),
}  # fmt: skip
FINISHES = ("plain", "striped", "dotted")
LOOKS = ("on-brand", "wild")
STUDIO_VERSION = (
    1  # part of every picture's recipe: to be raised when the same shot would come out differently
)


@dataclass(frozen=True)
class Product:
    """What a caption says of one product."""

    kind: str
    colour: str
    finish: str = "plain"

    def words(self) -> str:
        """`a red striped mug`; a plain finish goes unsaid."""
        words = [self.colour, self.kind] if self.finish == "plain" else [self.colour, self.finish, self.kind]
        return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


@dataclass(frozen=True)
class Shot:
    """One picture to be drawn: the same shot gives the same pixels, always."""

    look: str
    size: int
    seed: int
    index: int
    products: tuple[Product, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.look not in LOOKS:
            raise ValueError(f"look must be one of {', '.join(LOOKS)}, got {self.look!r}")
        if not 64 <= self.size <= 512:
            raise ValueError(f"studio picture size must be between 64 and 512 pixels, got {self.size}")

    def generator(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.index, LOOKS.index(self.look), purpose])

    def cast(self) -> tuple[Product, ...]:
        """The products in the picture: those asked for, else drawn by seed and index."""
        return self.products or draw_products(self.generator(0), self.look)

    def caption(self) -> str:
        return " and ".join(product.words() for product in self.cast())

    def draw(self) -> Image.Image:
        """The picture, RGB, (size, size)."""
        return (_on_brand if self.look == "on-brand" else _wild)(self)


def studio_catalogue(
    pictures: int,
    *,
    size: int,
    seed: int = 0,
    look: str = "on-brand",
    class_prefixes: Mapping[str, str] | None = None,
) -> Catalogue:
    """The studio's catalogue: shots drawn when they are opened; the class is the first product's kind.

    class_prefixes: as in `load_catalogue`. Attributes of a picture: `kind`, `colour`, `finish` of its first
    product.
    Raises ValueError on an unknown look, a size outside [64, 512], fewer than one picture or a prefix of an
    unknown class.
    """
    if pictures < 1:
        raise ValueError(f"pictures must be at least 1, got {pictures}")
    catalogue = [_record(Shot(look, size, seed, index)) for index in range(pictures)]
    for class_name in class_prefixes or {}:
        check_name(class_name, {picture.class_name for picture in catalogue}, what="class of class_prefixes")
    return Catalogue(catalogue, prefixes=class_prefixes)


def _record(shot: Shot) -> Picture:
    first = shot.cast()[0]
    return Picture(
        shot.draw,
        shot.caption(),
        first.kind,
        row=shot.index,
        origin=f"studio shot {shot.index}",
        recipe=f"studio {STUDIO_VERSION} {shot!r}",
        attributes=asdict(first),
        size=(shot.size, shot.size),
    )


def draw_products(rng: np.random.Generator, look: str) -> tuple[Product, ...]:
    """One product on-brand; one (55 %), two (35 %) or three in the wild, all of different kinds."""
    count = 1 if look == "on-brand" else int(rng.choice([1, 2, 3], p=[0.55, 0.35, 0.10]))
    kinds = rng.choice(len(CLASSES), count, replace=False)
    colours = list(COLOURS)
    return tuple(
        Product(CLASSES[k], colours[rng.integers(len(colours))], FINISHES[rng.choice(3, p=[0.5, 0.25, 0.25])])
        for k in kinds
    )


def _pigment(rng: np.random.Generator, name: str) -> np.ndarray:
    """A named colour as one dye lot gives it, (3,) in [0, 1]."""
    return np.clip(np.array(COLOURS[name]) / 255 + rng.normal(0, 0.018, 3), 0, 1)


def _on_brand(shot: Shot) -> Image.Image:
    rng = shot.generator(1)
    (product,) = shot.cast()
    white = 0.985 + rng.normal(0, 0.004) + rng.normal(0, 0.002, 3)
    canvas = np.broadcast_to(np.clip(white, 0, 1), (shot.size, shot.size, 3)).astype(np.float32).copy()
    placement = Placement(0.5 + rng.normal(0, 0.006), 0.5 + rng.normal(0, 0.006), 0.72 + rng.normal(0, 0.012))
    light = Light(side=-0.6 + rng.normal(0, 0.05), strength=0.30 + rng.normal(0, 0.02), shadow=0.22)
    parts = PRODUCTS[product.kind](rng)
    paint(canvas, parts, placement, colour=_pigment(rng, product.colour), finish=product.finish, light=light)
    canvas *= 1 + rng.normal(0, 0.006)
    return to_picture(canvas, rng, noise=0.004)


def _wild(shot: Shot) -> Image.Image:
    rng = shot.generator(1)
    products = shot.cast()
    canvas = wild_background(rng, shot.size)
    light = Light(rng.uniform(-1, 1), rng.uniform(0.1, 0.5), rng.choice([0.0, rng.uniform(0.1, 0.5)]))
    for product, placement in zip(products, _wild_placements(rng, len(products)), strict=True):
        parts = PRODUCTS[product.kind](rng)
        paint(
            canvas, parts, placement, colour=_pigment(rng, product.colour), finish=product.finish, light=light
        )
    exposure = rng.uniform(0.72, 1.12) * (1 + rng.normal(0, 0.03, 3))
    return to_picture(canvas * exposure.astype(np.float32), rng, noise=rng.uniform(0.002, 0.012))


def _wild_placements(rng: np.random.Generator, count: int) -> list[Placement]:
    """Anywhere for one product, now and then cut by the frame; side by side, in any order, for several."""
    rotations, flips = rng.normal(0, 12, count), rng.random(count) < 0.5
    if count == 1:
        size = rng.uniform(0.4, 0.95)
        room = 0.5 - 0.36 * size
        spots = [(0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room), size)]
    else:
        middle = (np.arange(count) + 0.5) / count
        sizes = rng.uniform(0.85, 1.15, count) * (0.52 if count == 2 else 0.40)
        spots = [
            (m + rng.uniform(-0.04, 0.04), rng.uniform(0.32, 0.68), s)
            for m, s in zip(middle, sizes, strict=True)
        ]
        spots = [spots[i] for i in rng.permutation(count)]
    return [
        Placement(x, y, s, float(r), bool(f)) for (x, y, s), r, f in zip(spots, rotations, flips, strict=True)
    ]
