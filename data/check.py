"""Every picture decoded once, so that a run meets no surprise after hours."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from PIL import Image

from .decode import UnreadablePicture
from .picture import Picture
from .processes import ALONE, Processes
from .progress import picture_bar

SAME_ASPECT = 0.01  # how far a condition's aspect ratio may be from its picture's, as a share

Found = tuple[str, tuple[int, int] | None]  # why a picture cannot be used, "" if it can; height and width


def check_pictures(
    pictures: Sequence[Picture],
    *,
    fatal: bool = False,
    progress: bool = True,
    processes: Processes = ALONE,
) -> tuple[list[Picture], list[tuple[str, str]]]:
    """The pictures that can be used, with their sizes, and (origin, reason) of the others.

    Decodes each picture and its condition once, in threads, divided over the processes; all get the same.
    Raises ValueError naming the first unusable picture if fatal.
    """
    shown, share = progress and processes.is_main, len(processes.share(pictures))
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        picture_bar("checking pictures", share, shown=shown) as advance,
    ):

        def look(picture: Picture) -> Found:
            try:
                return "", _size(picture)
            except UnreadablePicture as error:
                if fatal:
                    raise
                return error.reason, None
            finally:
                advance(1)

        found = processes.map(look, pictures, apply=pool.map)
    pairs = list(zip(pictures, found, strict=True))
    good = [replace(picture, size=size) for picture, (reason, size) in pairs if not reason]
    return good, [(picture.origin, reason) for picture, (reason, _) in pairs if reason]


def _size(picture: Picture) -> tuple[int, int]:
    image = picture.open()
    if picture.condition is not None:
        _check_aspect(image, picture.open_condition(), name=picture.origin)
    return image.height, image.width


def _check_aspect(image: Image.Image, condition: Image.Image, *, name: str) -> None:
    factor = image.height * condition.width / (image.width * condition.height)
    if abs(factor - 1) > SAME_ASPECT:
        sizes = f"{condition.height} x {condition.width} for {image.height} x {image.width}"
        raise UnreadablePicture(
            name, f"a condition picture of {sizes} pixels", rule="have its condition picture's aspect ratio"
        )
