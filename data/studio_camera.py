"""The studio's camera: places products, paints them, lights the scene. Pillow for outlines, numpy for
light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .studio_shapes import Part

SUPERSAMPLING = 4


@dataclass(frozen=True)
class Placement:
    """Where a product stands: centre and size as fractions of the frame, rotation in degrees."""

    x: float
    y: float
    size: float
    rotation: float = 0.0
    flip: bool = False


@dataclass(frozen=True)
class Light:
    """`side` in [-1, 1]: from which side the one light comes; `strength`: how deep the shaded side falls."""

    side: float
    strength: float
    shadow: float  # darkness of the shadow on the ground, 0 for none


def fitted(parts: list[Part], placement: Placement) -> tuple[list[Part], np.ndarray]:
    """The parts centred and scaled to `size` of the frame, and the frame's affine map.

    Returns the parts in product coordinates (bounding box centred at 0, longer side 2) and a (2, 3) matrix
    from product coordinates to frame fractions.
    """
    everything = np.concatenate([part.outline for part in parts])
    low, high = everything.min(0), everything.max(0)
    centre, half = (low + high) / 2, (high - low).max() / 2
    flip = np.array([-1.0 if placement.flip else 1.0, 1.0])
    parts = [Part((p.outline - centre) / half * flip, p.tone, p.patterned, p.neutral) for p in parts]
    c, s = np.cos(np.radians(placement.rotation)), np.sin(np.radians(placement.rotation))
    linear = np.array([[c, -s], [s, c]]) * placement.size / 2
    return parts, np.concatenate([linear, [[placement.x], [placement.y]]], axis=1)


def mask_of(outline: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Coverage in [0, 1] of one outline, (size, size), anti-aliased by supersampling."""
    fine = size * SUPERSAMPLING
    points = (outline @ matrix[:, :2].T + matrix[:, 2]) * fine
    canvas = Image.new("L", (fine, fine), 0)
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def paint(
    canvas: np.ndarray,
    parts: list[Part],
    placement: Placement,
    *,
    colour: np.ndarray,
    finish: str,
    light: Light,
) -> None:
    """Draws one product with its shadow onto `canvas` (size, size, 3) in [0, 1], in place."""
    size = canvas.shape[0]
    parts, matrix = fitted(parts, placement)
    u, v = product_coordinates(matrix, size)
    if light.shadow:
        _cast_shadow(canvas, parts, placement, light)
    # a product is lit like a cylinder: bright on the light's side, falling off to the other
    facing = np.clip(1 - (u - 0.45 * light.side) ** 2, 0, 1)
    shade = 1 - light.strength * (1 - facing) - 0.10 * light.strength * v
    pattern = coverage_of(finish, u, v, size=size, scale=placement.size)[..., None]
    for part in parts:
        base = colour * part.tone if part.neutral is None else np.full(3, part.neutral)
        paint_colour = np.broadcast_to(np.clip(base, 0, 1), canvas.shape)
        if part.patterned:
            paint_colour = paint_colour * (1 - pattern) + pattern * (0.12 * colour + 0.86)
        alpha = mask_of(part.outline, matrix, size)[..., None]
        canvas += alpha * (np.clip(paint_colour * shade[..., None], 0, 1) - canvas)


def product_coordinates(matrix: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Product coordinates (u, v) of every pixel centre, each (size, size)."""
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    inverse = np.linalg.inv(matrix[:, :2])
    x, y = x - matrix[0, 2], y - matrix[1, 2]
    u = inverse[0, 0] * x + inverse[0, 1] * y
    v = inverse[1, 0] * x + inverse[1, 1] * y
    return u.astype(np.float32), v.astype(np.float32)


def coverage_of(finish: str, u: np.ndarray, v: np.ndarray, *, size: int, scale: float) -> np.ndarray:
    """Share of each pixel that a finish covers with its light second colour, in [0, 1]."""
    pixel = 2 / (size * scale)  # one pixel in product coordinates, the width of a clean edge
    if finish == "striped":
        distance = np.abs((v / 0.5) % 1 - 0.5) * 0.5 - 0.125
    elif finish == "dotted":
        row = np.floor(v / 0.42)
        du = ((u / 0.42 + 0.5 * (row % 2)) % 1 - 0.5) * 0.42
        dv = ((v / 0.42) % 1 - 0.5) * 0.42
        distance = 0.125 - np.hypot(du, dv)
    else:
        return np.zeros_like(u)
    return np.clip(distance / pixel + 0.5, 0, 1)


def _cast_shadow(canvas: np.ndarray, parts: list[Part], placement: Placement, light: Light) -> None:
    """One soft elliptic shadow where the product stands."""
    everything = np.concatenate([part.outline for part in parts])
    width = np.ptp(everything[:, 0]) / 2 * placement.size / 2
    ground = placement.y + everything[:, 1].max() * placement.size / 2
    size = canvas.shape[0]
    centres = (np.arange(size) + 0.5) / size
    x = (centres[None, :] - placement.x + 0.06 * light.side * placement.size) / (width * 1.05)
    y = (centres[:, None] - ground) / (0.07 * placement.size)
    canvas *= (1 - light.shadow * np.exp(-(x**2) - y**2))[..., None]


def to_picture(canvas: np.ndarray, rng: np.random.Generator, *, noise: float) -> Image.Image:
    """Rounds to 8 bits after adding sensor noise of the given standard deviation (in [0, 1])."""
    canvas = canvas + rng.normal(0, noise, canvas.shape)
    return Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))
