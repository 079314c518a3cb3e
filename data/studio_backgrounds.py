"""Backgrounds for the studio's wild look: everything a product catalogue would reject."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def wild_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random background (size, size, 3) float32 in [0, 1]."""
    kinds: list[Callable[[np.random.Generator, int], np.ndarray]] = [
        _plain,
        _gradient,
        _spot,
        _room,
        _tiles,
        _clutter,
    ]
    return kinds[rng.choice(len(kinds), p=[0.16, 0.18, 0.14, 0.2, 0.12, 0.2])](rng, size).astype(np.float32)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Any colour, muted more often than not: backgrounds are seldom as saturated as products."""
    grey = rng.uniform(0.12, 0.92)
    return np.clip(grey + rng.normal(0, 1, 3) * rng.choice([0.05, 0.12, 0.25]), 0.03, 0.97)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x[..., None], y[..., None]


def _plain(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.broadcast_to(_colour(rng), (size, size, 3)).copy()


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    t = np.clip(0.5 + (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)), 0, 1)
    return (1 - t) * _colour(rng) + t * _colour(rng)


def _spot(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = _grid(size)
    t = np.exp(
        -((x - rng.uniform(0.2, 0.8)) ** 2 + (y - rng.uniform(0.2, 0.8)) ** 2) / rng.uniform(0.05, 0.3)
    )
    return (1 - t) * _colour(rng) + t * _colour(rng)


def _room(rng: np.random.Generator, size: int) -> np.ndarray:
    """A wall and a floor or table, each with its own falloff of light."""
    _, y = _grid(size)
    horizon = rng.uniform(0.4, 0.8)
    edge = np.clip((y - horizon) * size + 0.5, 0, 1)
    wall = _colour(rng) * (1 - rng.uniform(0, 0.3) * y)
    floor = _colour(rng) * (1 - rng.uniform(0, 0.3) * (1 - y))
    return np.broadcast_to((1 - edge) * wall + edge * floor, (size, size, 3)).copy()


def _tiles(rng: np.random.Generator, size: int) -> np.ndarray:
    """Stripes or a checkerboard, at any angle, low in contrast."""
    x, y = _grid(size)
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.14, 0.4)
    u = (np.cos(angle) * x + np.sin(angle) * y) / period
    v = (-np.sin(angle) * x + np.cos(angle) * y) / period
    sharp = period * size / 2
    wave = _square_wave(u, sharp)
    if rng.random() < 0.5:
        wave = wave * _square_wave(v, sharp)
    base, other = _colour(rng), _colour(rng)
    t = (0.5 + 0.5 * wave) * rng.uniform(0.3, 0.8)
    return (1 - t) * base + t * other


def _square_wave(u: np.ndarray, sharp: float) -> np.ndarray:
    """A square wave in [-1, 1] whose edges are one pixel wide."""
    return np.clip((0.25 - np.abs(u % 1 - 0.5)) * 2 * sharp, -1, 1)


def _clutter(rng: np.random.Generator, size: int) -> np.ndarray:
    """Out-of-focus things behind the product."""

    def byte(colour: np.ndarray) -> tuple[int, ...]:
        return tuple(int(255 * c) for c in colour)

    canvas = Image.new("RGB", (size, size), byte(_colour(rng)))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(4, 12)):
        x, y, w, h = rng.uniform(-0.1, 1.0, 2).tolist() + rng.uniform(0.08, 0.4, 2).tolist()
        box = [x * size, y * size, (x + w) * size, (y + h) * size]
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=byte(_colour(rng)))
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(size * rng.uniform(0.005, 0.05)))) / 255
