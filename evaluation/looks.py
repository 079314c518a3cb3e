"""Many pictures, from a folder or a list, each opened, measured and let go."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from .agreement import Scorer
from .look.foreground import Look, look

PICTURE_SUFFIXES = (
    *(".apng", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)

Pictures = str | os.PathLike[str] | Iterable[Image.Image]
Descriptor = Callable[[Sequence[Image.Image]], Any]  # (N, D) features, rows of length 1


def picture_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """All pictures in a folder and the folders in it, sorted, hidden ones left out.

    Raises ValueError when there is no such folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"pictures must be a list of PIL images or an existing folder, got {str(folder)!r}")
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise ValueError(
            f"folder must hold pictures ({' '.join(PICTURE_SUFFIXES)}), got none in {str(folder)!r}"
        )
    return paths


def open_picture(path: Path) -> Image.Image:
    """One picture file, turned upright; Raises ValueError that names a file which cannot be read."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"picture must be readable, got {str(path)!r}: {error}") from error


def named_pictures(pictures: Pictures) -> Iterator[tuple[str, Image.Image]]:
    """Name and picture of each: the path inside a folder, or "picture <position>" in a list."""
    if isinstance(pictures, str | os.PathLike):
        for path in picture_paths(pictures):
            yield path.relative_to(pictures).as_posix(), open_picture(path)
        return
    for i, image in enumerate(pictures):
        if not isinstance(image, Image.Image):
            raise ValueError(f"pictures must be PIL images, got {type(image).__name__} at position {i}")
        yield f"picture {i}", image


def look_at(
    pictures: Pictures,
    *,
    what: str,
    descriptor: Descriptor | None = None,
    given_names: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    scorer: Scorer | None = None,
) -> tuple[list[str], list[Look]]:
    """Names and looks of all pictures, one in memory at a time.

    given_names: what they are called, one each, where that is known better. descriptor: takes the place of
    the model-free features. captions, scorer: both or neither, the score of each picture with its caption
    becomes its value "text".
    Raises ValueError when there are no pictures, on an unreadable one, captions without a scorer or the
    reverse, as many names or captions as there are not pictures, and features or scores that are no numbers.
    """
    if (captions is None) != (scorer is None):
        given, lacking = ("captions", "scorer") if scorer is None else ("scorer", "captions")
        raise ValueError(f"captions and scorer must be given together, got {given} without {lacking}")
    names: list[str] = []
    looks: list[Look] = []
    for name, image in tqdm(
        named_pictures(pictures), desc=f"measuring {what}", delay=2, leave=False, disable=None
    ):
        if given_names is not None:
            if len(names) == len(given_names):
                raise ValueError(f"names must be one a picture, got {len(names)} and more pictures")
            name = given_names[len(names)]
        try:
            seen = look(image)
        except ValueError as error:
            raise ValueError(f"{what}, {name}: {error}") from error
        if descriptor is not None:
            seen = seen._replace(features=_described(descriptor, image))
        if scorer is not None and captions is not None:
            if len(looks) == len(captions):
                raise ValueError(f"captions must be one a picture, got {len(captions)} and more pictures")
            seen.values["text"] = float(scorer([image], [captions[len(looks)]])[0])
            if not math.isfinite(seen.values["text"]):
                raise ValueError(f"scorer must give finite numbers, got {seen.values['text']} for {name}")
        names.append(name)
        looks.append(seen)
    if not names:
        raise ValueError(f"{what} must be at least one picture, got none")
    if given_names is not None and len(given_names) != len(names):
        raise ValueError(f"names must be one a picture, got {len(given_names)} for {len(names)} pictures")
    if captions is not None and len(captions) != len(names):
        raise ValueError(f"captions must be one a picture, got {len(captions)} for {len(names)} pictures")
    return names, looks


def name_of(judge: Any, default: str = "") -> str:
    """What a descriptor or scorer calls itself: its `name`, else its function's or class's."""
    if judge is None:
        return default
    return str(getattr(judge, "name", None) or getattr(judge, "__name__", type(judge).__name__))


def _described(descriptor: Descriptor, image: Image.Image) -> np.ndarray:
    """A descriptor's features of one picture, (D,) float32, scaled from length 1 to 1 a direction."""
    features = np.asarray(descriptor([image]), dtype=np.float32)[0]
    if not np.isfinite(features).all():
        raise ValueError(f"descriptor must give finite features, got {features[~np.isfinite(features)][0]}")
    return features * np.float32(len(features) ** 0.5)
