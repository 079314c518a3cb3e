"""Synthetic product pictures: a coloured ellipse on white with a soft shadow, and a little camera jitter."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE, FINE = 64, 4  # drawn four times finer, for soft edges

Draw = Callable[..., Image.Image]


def draw(
    *,
    backdrop: tuple[int, int, int] = (250, 250, 250),
    slope: float = 0.0,
    centre: tuple[float, float] = (0.5, 0.5),
    size: tuple[float, float] = (0.6, 0.5),
    colour: tuple[int, int, int] | None = (190, 50, 40),
    noise: float = 1.0,
    seed: int = 0,
) -> Image.Image:
    """centre, size: fractions of the frame; slope: grey levels lost from left to right."""
    side = SIZE * FINE
    picture = Image.new("RGB", (side, side), backdrop)
    if colour is not None:
        (x, y), (width, height) = centre, size
        box = [side * v for v in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)]
        shadow = Image.new("L", (side, side), 255)
        low = side * (y + height / 2)
        ImageDraw.Draw(shadow).ellipse((box[0], low - 0.04 * side, box[2], low + 0.04 * side), fill=215)
        shadow = shadow.filter(ImageFilter.GaussianBlur(0.04 * side))
        picture = ImageChops.multiply(picture, Image.merge("RGB", [shadow] * 3))
        ImageDraw.Draw(picture).ellipse(box, fill=colour)
    pixels = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    pixels = pixels - np.linspace(-slope / 2, slope / 2, SIZE)[None, :, None]
    pixels = pixels + np.random.default_rng(seed).normal(0, noise, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def draw_catalogue(n: int, *, seed: int, size: tuple[float, float] = (0.6, 0.5)) -> list[Image.Image]:
    """n pictures as one photographer takes them: exposure, place, scale and colour vary a little."""
    rng = np.random.default_rng(seed)
    pictures = []
    for i in range(n):
        grow = rng.normal(1, 0.015)
        pictures.append(
            draw(
                backdrop=(int(rng.integers(248, 254)),) * 3,
                centre=(rng.normal(0.5, 0.006), rng.normal(0.5, 0.006)),
                size=(size[0] * grow, size[1] * grow),
                colour=tuple(int(v) for v in rng.integers((150, 30, 30), (230, 90, 90))),
                seed=seed * 100_003 + i,
            )
        )
    return pictures


@pytest.fixture(name="draw")
def draw_fixture() -> Draw:
    return draw


@pytest.fixture(name="draw_catalogue")
def draw_catalogue_fixture() -> Callable[..., list[Image.Image]]:
    return draw_catalogue


@pytest.fixture(scope="session")
def catalogue() -> list[Image.Image]:
    """400 pictures to calibrate on; read it, do not change it."""
    return draw_catalogue(400, seed=1)
