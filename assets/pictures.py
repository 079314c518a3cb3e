"""Studio pictures as arrays, drawn once and kept beside the training that uses them."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from ..data.studio import Shot
from ..whole_file import whole


def draw(shots: list[Shot]) -> np.ndarray:
    """(N, size, size, 3) uint8."""
    with ProcessPoolExecutor() as pool:
        return np.stack(list(pool.map(_pixels, shots, chunksize=256)))


def drawn_once(shots: list[Shot], *, file: Path) -> tuple[np.ndarray, list[str]]:
    """The shots' pixels and captions, read from `file` (npy beside JSON) when it is there."""
    captions = file.with_suffix(".json")
    if not captions.exists():
        with whole(file) as beside, beside.open("wb") as written:
            np.save(written, draw(shots))
        captions.write_text(json.dumps([shot.caption() for shot in shots]))
    return np.load(file, mmap_mode="r"), json.loads(captions.read_text())


def _pixels(shot: Shot) -> np.ndarray:
    return np.asarray(shot.draw())
