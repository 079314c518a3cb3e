"""The studio's products: each class is a function from a random generator to drawable parts.

Product coordinates: x right, y down, the product fits the square [-1, 1]^2 and stands on its lowest point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Points = np.ndarray  # (n, 2)


@dataclass(frozen=True)
class Part:
    """One closed outline: `tone` scales the product's colour, `patterned` parts carry stripes or dots."""

    outline: Points
    tone: float = 1.0
    patterned: bool = False
    neutral: float | None = None  # grey level in [0, 1] for parts that do not take the product's colour


def _smooth(points: list[tuple[float, float]], rounds: int = 3) -> Points:
    """Chaikin's corner cutting: a round outline from a coarse closed polygon."""
    p = np.asarray(points, dtype=float)
    for _ in range(rounds):
        q = np.roll(p, -1, axis=0)
        p = np.stack([0.75 * p + 0.25 * q, 0.25 * p + 0.75 * q], axis=1).reshape(-1, 2)
    return p


def _sharp(points: list[tuple[float, float]]) -> Points:
    return np.asarray(points, dtype=float)


def _mirrored(right: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A left-right symmetric outline from its right half, listed from top to bottom."""
    return right + [(-x, y) for x, y in reversed(right)]


def _ellipse(x: float, y: float, rx: float, ry: float, n: int = 40) -> Points:
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1)


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float, width: float) -> Points:
    """A band of the given width along an elliptic arc; angles in degrees, clockwise from the right."""
    t = np.radians(np.linspace(start, end, 32))
    ring = np.stack([np.cos(t), np.sin(t)], axis=1)
    outer, inner = ring * [rx, ry], ring * [rx - width, ry - width]
    return np.concatenate([outer, inner[::-1]]) + np.array([x, y])


def _bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Points:
    a, b = np.array([x0, y0]), np.array([x1, y1])
    along = (b - a) / np.linalg.norm(b - a)
    side = np.array([-along[1], along[0]]) * width / 2
    return np.stack([a + side, b + side, b - side, a - side])


def mug(rng: np.random.Generator) -> list[Part]:
    """A mug with a handle on its right."""
    w, h, taper = rng.uniform(0.58, 0.74), rng.uniform(0.72, 0.92), rng.uniform(0.78, 1.0)
    x = -0.2
    body = [(x - w, -h), (x + w, -h), (x + w * taper, h), (x - w * taper, h)]
    corner = [body[0], body[1], *_toward(body[2], body[1], body[3]), *_toward(body[3], body[2], body[0])]
    handle = _arc(x + w * 0.9, rng.uniform(-0.12, 0.12), 0.48, h * rng.uniform(0.5, 0.66), -95, 95, 0.19)
    rim = _ellipse(x, -h, w, 0.13)
    inside = _ellipse(x, -h, w * 0.87, 0.085)
    return [Part(handle, 0.82), Part(_sharp(corner), 1.0, True), Part(rim, 1.12), Part(inside, 0.5)]


def _toward(corner: tuple, before: tuple, after: tuple, amount: float = 0.16) -> list[tuple[float, float]]:
    """A corner of a polygon, cut round by a quadratic curve towards its two neighbours."""
    c, b, a = np.array(corner), np.array(before), np.array(after)
    p, q = c + amount * (b - c), c + amount * (a - c)
    t = np.linspace(0, 1, 8)[:, None]
    return [(float(x), float(y)) for x, y in (1 - t) ** 2 * p + 2 * t * (1 - t) * c + t**2 * q]


def bottle(rng: np.random.Generator) -> list[Part]:
    """A bottle with a cap, its profile turned."""
    w, neck = rng.uniform(0.34, 0.48), rng.uniform(0.12, 0.17)
    shoulder, top = rng.uniform(-0.42, -0.12), -0.8
    half = [
        (neck, top),
        (neck, shoulder - 0.26),
        (w * 0.95, shoulder),
        (w, shoulder + 0.2),
        (w, 0.86),
        (w * 0.9, 1.0),
    ]
    cap = [(-neck * 1.25, -1.0), (neck * 1.25, -1.0), (neck * 1.25, top + 0.02), (-neck * 1.25, top + 0.02)]
    outline = _sharp(_mirrored([(x, y) for x, y in _half_smooth(half)]))
    return [Part(outline, 1.0, True), Part(_sharp(cap), 0.55)]


def _half_smooth(points: list[tuple[float, float]], rounds: int = 2) -> list[tuple[float, float]]:
    """Chaikin's corner cutting of an open line, its two ends kept."""
    p = np.asarray(points, dtype=float)
    for _ in range(rounds):
        a, b = p[:-1], p[1:]
        cut = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], axis=1).reshape(-1, 2)
        p = np.concatenate([p[:1], cut[1:-1], p[-1:]])
    return [(float(x), float(y)) for x, y in p]


def shoe(rng: np.random.Generator) -> list[Part]:
    """A laced shoe seen from the side, toe to the right."""
    collar, toe = rng.uniform(-0.62, -0.42), rng.uniform(0.02, 0.14)
    upper = _smooth(
        [(-0.95, 0.3), (-0.92, collar), (-0.86, collar - 0.06), (-0.4, collar + 0.02), (-0.28, collar + 0.06),
         (0.12, toe - 0.22), (0.6, toe), (0.92, toe + 0.08), (0.98, 0.34)], 2)  # fmt: skip
    sole = _smooth([(-0.98, 0.26), (1.0, 0.26), (1.0, 0.52), (-0.98, 0.52)], 2)
    opening = _ellipse(-0.62, collar + 0.03, 0.26, 0.07)
    laces = [
        Part(_bar(d - 0.14, collar + 0.2 + d * 0.72, d + 0.06, collar + 0.06 + d * 0.72, 0.07), neutral=0.93)
        for d in (0.0, 0.17, 0.34)
    ]
    return [Part(upper, 1.0, True), Part(opening, 0.45), Part(sole, neutral=rng.uniform(0.80, 0.88)), *laces]


def shirt(rng: np.random.Generator) -> list[Part]:
    """A T-shirt laid flat."""
    w, sleeve = rng.uniform(0.5, 0.6), rng.uniform(0.3, 0.62)
    drop = -0.62 + sleeve * 0.75
    half = [(0.2, -0.9), (0.5, -0.82), (0.62, -0.74), (0.96, drop - 0.12), (0.74, drop + 0.14),
            (w + 0.02, -0.3), (w, 0.9)]  # fmt: skip
    body = _sharp(_mirrored(half))
    neck = _ellipse(0, -0.9, 0.22, rng.uniform(0.12, 0.2))
    collar = _arc(0, -0.9, 0.27, 0.24, 0, 180, 0.07)
    return [Part(body, 1.0, True), Part(neck, 0.5), Part(collar, 0.72)]


def bag(rng: np.random.Generator) -> list[Part]:
    """A tote bag with one handle."""
    w, flare, top = rng.uniform(0.62, 0.78), rng.uniform(1.0, 1.18), rng.uniform(-0.3, -0.12)
    body = [(-w, top), (w, top), *_toward((w * flare, 0.92), (w, top), (-w * flare, 0.92), 0.1),
            *_toward((-w * flare, 0.92), (w * flare, 0.92), (-w, top), 0.1)]  # fmt: skip
    r = rng.uniform(0.36, 0.46)
    handle = _arc(0, top + 0.06, r, rng.uniform(0.6, 0.8), 180, 360, 0.12)
    hem = [(-w, top), (w, top), (w * 1.01, top + 0.12), (-w * 1.01, top + 0.12)]
    return [Part(handle, 0.66), Part(_sharp(body), 1.0, True), Part(_sharp(hem), 0.8)]


def lamp(rng: np.random.Generator) -> list[Part]:
    """A table lamp: foot, stem and shade."""
    top, bottom, height = rng.uniform(0.26, 0.44), rng.uniform(0.66, 0.82), rng.uniform(0.78, 0.98)
    shade = [(-top, -0.95), (top, -0.95), (bottom, -0.95 + height), (-bottom, -0.95 + height)]
    stem = _bar(0, -0.95 + height, 0, 0.9, rng.uniform(0.12, 0.2))
    foot = _ellipse(0, 0.88, rng.uniform(0.38, 0.52), 0.12)
    metal = rng.uniform(0.3, 0.42)
    return [Part(stem, neutral=metal), Part(foot, neutral=metal * 0.9), Part(_sharp(shade), 1.0, True)]


def chair(rng: np.random.Generator) -> list[Part]:
    """A chair seen from the front."""
    w, seat, thick = rng.uniform(0.52, 0.62), rng.uniform(0.1, 0.22), rng.uniform(0.15, 0.2)
    back = _smooth([(-w, -0.98), (w, -0.98), (w * 0.96, seat - 0.26), (-w * 0.96, seat - 0.26)], 2)
    cushion = [
        (-w * 0.96, seat - 0.1),
        (w * 0.96, seat - 0.1),
        (w * 1.16, seat + 0.2),
        (-w * 1.16, seat + 0.2),
    ]
    legs = [Part(_bar(s * w * 0.98, seat + 0.15, s * w * 1.12, 0.98, thick), 0.55) for s in (-1, 1)]
    posts = [Part(_bar(s * w * 0.7, seat - 0.4, s * w * 0.7, seat, thick * 0.8), 0.55) for s in (-1, 1)]
    return [*posts, *legs, Part(back, 1.0, True), Part(_sharp(cushion), 0.84)]


def hat(rng: np.random.Generator) -> list[Part]:
    """A brimmed hat with a band."""
    w, h = rng.uniform(0.46, 0.58), rng.uniform(0.62, 0.86)
    half = [(0.0, 0.28 - h * 1.02), (w * 0.7, 0.26 - h), (w * 0.98, 0.5 - h), (w * 1.06, 0.34)]
    crown = _sharp(_mirrored(_half_smooth(half, 3)))
    brim = _ellipse(0, 0.34, 0.98, rng.uniform(0.2, 0.27))
    band = [(-w * 1.02, 0.12), (w * 1.02, 0.12), (w * 1.07, 0.34), (-w * 1.07, 0.34)]
    return [Part(brim, 0.86), Part(crown, 1.0, True), Part(_sharp(band), 0.42)]


PRODUCTS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "bag": bag, "bottle": bottle, "chair": chair, "hat": hat, "lamp": lamp, "mug": mug, "shirt": shirt,
    "shoe": shoe,
}  # fmt: skip
