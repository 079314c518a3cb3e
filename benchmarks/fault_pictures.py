"""Hand-made faults: a catalogue's own picture with one thing wrong, at a given severity."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from onbrand.data.studio import COLOURS, Shot
from onbrand.data.studio_camera import Light, Placement, paint, to_picture
from onbrand.data.studio_shapes import PRODUCTS
from onbrand.evaluation.look.foreground import border_ring, product_mask, to_rgb
from PIL import Image, ImageDraw, ImageFilter, ImageFont

STUDIO_SHADOW, STUDIO_SIDE = 0.22, -0.6


class Case(NamedTuple):
    """A picture of the catalogue, another one of it, and, in the studio, the shot it came from."""

    picture: Image.Image
    other: Image.Image
    shot: Shot | None = None


class Fault(NamedTuple):
    """What goes wrong, how the severities read, and the picture at one of them."""

    name: str
    unit: str
    severities: tuple[float, ...]
    make: Callable[[Case, float], Image.Image]
    studio_only: bool = False


def studio_picture(
    shot: Shot, *, shadow: float = STUDIO_SHADOW, side: float = STUDIO_SIDE, dim: float = 0.0
) -> Image.Image:
    """The studio's on-brand picture of a shot, draw for draw, but for its shadow, its light or its tone.

    shadow: its depth; side: where the light comes from, -1 left to 1 right; dim: share of light the product
    loses.
    """
    rng = shot.generator(1)
    (product,) = shot.cast()
    white = 0.985 + rng.normal(0, 0.004) + rng.normal(0, 0.002, 3)
    canvas = np.broadcast_to(np.clip(white, 0, 1), (shot.size, shot.size, 3)).astype(np.float32).copy()
    x, y, size = 0.5 + rng.normal(0, 0.006), 0.5 + rng.normal(0, 0.006), 0.72 + rng.normal(0, 0.012)
    side, strength = side + rng.normal(0, 0.05), 0.30 + rng.normal(0, 0.02)
    parts = PRODUCTS[product.kind](rng)
    colour = np.clip(np.array(COLOURS[product.colour]) / 255 + rng.normal(0, 0.018, 3), 0, 1) * (1 - dim)
    paint(
        canvas, parts, Placement(x, y, size), colour=colour, finish=product.finish,
        light=Light(side, strength, shadow),
    )  # fmt: skip
    canvas *= 1 + rng.normal(0, 0.006)
    return to_picture(canvas, rng, noise=0.004)


def backdrop_of(picture: Image.Image) -> tuple[int, int, int]:
    """The median colour of the border."""
    pixels = np.asarray(picture)
    red, green, blue = np.median(pixels[border_ring(*pixels.shape[:2])], axis=0).round().astype(int)
    return int(red), int(green), int(blue)


def product_box(picture: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the product in pixels, the whole picture where none stands out."""
    return product_mask(picture).getbbox() or (0, 0, *picture.size)


def moved(
    case: Case, *, x: float = 0.0, y: float = 0.0, scale: float = 1.0, turn: float = 0.0
) -> Image.Image:
    """The picture shifted (fractions of the frame), scaled and turned (degrees) on its own backdrop."""
    picture = to_rgb(case.picture)
    width, height = picture.size
    cos, sin = np.cos(np.radians(turn)) / scale, np.sin(np.radians(turn)) / scale
    cx, cy = width / 2, height / 2
    dx, dy = cx + x * width, cy + y * height
    inverse = (cos, sin, cx - cos * dx - sin * dy, -sin, cos, cy + sin * dx - cos * dy)
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        inverse,
        Image.Resampling.BICUBIC,
        fillcolor=backdrop_of(picture),
    )


def cropped(case: Case, share: float) -> Image.Image:
    """Shifted to the right until so much of the product is cut off."""
    left, _, right, _ = product_box(to_rgb(case.picture))
    width = case.picture.width
    return moved(case, x=(width - right + share * (right - left)) / width)


def tinted(case: Case, warmth: float) -> Image.Image:
    """Red stronger and blue weaker by a share, as under a warm lamp."""
    return _scaled(to_rgb(case.picture), np.array([1.0, 1 - warmth / 2, 1 - warmth]))


def exposed(case: Case, loss: float) -> Image.Image:
    """The whole picture darker by a share."""
    return _scaled(to_rgb(case.picture), np.array(1 - loss))


def on_backdrop(case: Case, loss: float, *, slope: bool = False) -> Image.Image:
    """The backdrop darker by a share: evenly, or falling off from left to right."""
    picture = to_rgb(case.picture)
    across = np.linspace(0, 1, picture.width)[None, :, None] if slope else 1.0
    return _blended(picture, _scaled(picture, 1 - loss * across), outside=True)


def dim_product(case: Case, loss: float) -> Image.Image:
    """The product alone darker by a share."""
    picture = to_rgb(case.picture)
    return _blended(picture, _scaled(picture, np.array(1 - loss)))


def other_light(case: Case, strength: float) -> Image.Image:
    """The product brighter to the right and darker to the left, by so much at its ends."""
    picture = to_rgb(case.picture)
    left, _, right, _ = product_box(picture)
    across = (np.arange(picture.width) - (left + right) / 2) / max(1, (right - left) / 2)
    return _blended(picture, _scaled(picture, 1 + strength * across.clip(-1, 1)[None, :, None]))


def with_second(case: Case, size: float) -> Image.Image:
    """Another product beside the first, at a share of its size, in the lower right corner."""
    picture, other = to_rgb(case.picture).copy(), to_rgb(case.other)
    mask = product_mask(other)
    box = mask.getbbox() or (0, 0, *other.size)
    product, cut = other.crop(box), mask.crop(box)
    fitted = (max(4, round(product.width * size)), max(4, round(product.height * size)))
    corner = (round(picture.width * 0.97) - fitted[0], round(picture.height * 0.97) - fitted[1])
    picture.paste(product.resize(fitted, Image.Resampling.LANCZOS), corner, cut.resize(fitted))
    return picture


def heavy_shadow(case: Case, depth: float) -> Image.Image:
    """One more soft shadow where the product stands, behind it."""
    picture = to_rgb(case.picture)
    left, _, right, bottom = product_box(picture)
    side = max(picture.size)
    shade = Image.new("L", picture.size, 0)
    flat = (left - 0.02 * side, bottom - 0.06 * side, right + 0.02 * side, bottom + 0.04 * side)
    ImageDraw.Draw(shade).ellipse(flat, fill=255)
    shade = shade.filter(ImageFilter.GaussianBlur(0.025 * side))
    factor = 1 - depth * np.asarray(shade, dtype=np.float32)[..., None] / 255
    return _blended(picture, _scaled(picture, factor), outside=True)


def redrawn(case: Case, severity: float, *, what: str) -> Image.Image:
    """The studio's picture with its own shadow, side of the light or product's tone at another value."""
    assert case.shot is not None
    return studio_picture(case.shot, **{what: severity})


def captioned(case: Case, share: float) -> Image.Image:
    """A banner of text over so much of the picture's height, as in an advertisement."""
    picture = to_rgb(case.picture).copy()
    width, height = picture.size
    band = max(8, round(share * height))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, width, band), fill=(200, 30, 40))
    draw.text((0.04 * width, 0.1 * band), "SALE 50 %", "white", font=ImageFont.load_default(0.6 * band))
    return picture


def collage(case: Case, count: float) -> Image.Image:
    """The picture and another one, in turn, on a grid of count by count."""
    picture, n = to_rgb(case.picture), int(count)
    side = (picture.width // n, picture.height // n)
    sheet = Image.new("RGB", picture.size, backdrop_of(picture))
    for i in range(n * n):
        tile = (picture if i % 2 == 0 else to_rgb(case.other)).resize(side, Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % n * side[0], i // n * side[1]))
    return sheet


def _scaled(picture: Image.Image, factor: np.ndarray) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float32) * factor
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def _blended(picture: Image.Image, changed: Image.Image, *, outside: bool = False) -> Image.Image:
    """The change inside the product alone, or outside it alone."""
    mask = product_mask(picture)
    first, second = (picture, changed) if outside else (changed, picture)
    return Image.composite(first, second, mask)


FAULTS = (
    Fault("crop", "of the product cut off", (0.05, 0.1, 0.2), cropped),
    Fault("shift", "of the frame", (0.03, 0.06, 0.12), lambda case, s: moved(case, x=s)),
    Fault("raised", "of the frame", (0.03, 0.06, 0.12), lambda case, s: moved(case, y=-s)),
    Fault("smaller", "of its size lost", (0.05, 0.1, 0.3), lambda case, s: moved(case, scale=1 - s)),
    Fault("turned", "degrees", (5, 10, 20, 45), lambda case, s: moved(case, turn=s)),
    Fault("lying", "degrees", (90, 180), lambda case, s: moved(case, turn=s)),
    Fault("second object", "of the first's size", (0.15, 0.3, 0.5), with_second),
    Fault("tint", "less blue", (0.04, 0.08, 0.16), tinted),
    Fault("grey backdrop", "darker", (0.05, 0.1, 0.2), on_backdrop),
    Fault("sloping backdrop", "darker to the right", (0.05, 0.1, 0.2), partial(on_backdrop, slope=True)),
    Fault("dark light", "darker", (0.05, 0.1, 0.2), exposed),
    Fault("dim product", "darker", (0.2, 0.4, 0.6), dim_product),
    Fault("light from the right", "at the product's ends", (0.15, 0.3, 0.5), other_light),
    Fault("heavy shadow", "darker", (0.1, 0.2, 0.4), heavy_shadow),
    Fault("redrawn shadow", "deep, own 0.22", (0.0, 0.1, 0.35, 0.5), partial(redrawn, what="shadow"), True),
    Fault("redrawn light", "side, own -0.6", (-0.3, 0.0, 0.6), partial(redrawn, what="side"), True),
    Fault("redrawn tone", "darker product", (0.2, 0.4, 0.6), partial(redrawn, what="dim"), True),
    Fault("banner", "of the height", (0.05, 0.1, 0.2), captioned),
    Fault("collage", "pictures a side", (2, 3), collage),
)  # fmt: skip
