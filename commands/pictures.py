"""A folder of drawn pictures, each with its recipe, written so that no earlier one is lost."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, PngImagePlugin

from ..evaluation import contact_sheet
from .console import check_folder
from .recipes import Recipe, parameters

RECIPES, SHEET, TRACE = "samples.json", "sheet.jpg", "trace.png"
BOXES, ATTENTION = "layout.jpg", "attention.jpg"  # beside a gallery that follows a layout
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
MOST_ON_SHEET = 512


def file_name(place: int) -> str:
    """The file of a picture, by its place among all."""
    return f"{place:04d}.png"


def save_picture(picture: Image.Image, folder: Path, place: int, recipe: Recipe) -> None:
    """Writes a PNG with its recipe in two forms: JSON as "onbrand", and A1111's text as "parameters"."""
    info = PngImagePlugin.PngInfo()
    info.add_text("onbrand", json.dumps(recipe))
    info.add_text("parameters", parameters(recipe))
    picture.save(folder / file_name(place), pnginfo=info)


def check_output(output: Path, recipes: Sequence[Recipe]) -> None:
    """Refuses a folder that holds pictures other than those of these recipes, as far as these say.

    Raises ValueError with the first difference.
    """
    check_folder(output)
    rule = "--output must be a new folder, or one with pictures of the same recipe"
    file = output / RECIPES
    if file.is_file():
        try:
            stored = json.loads(file.read_text())
        except json.JSONDecodeError:
            raise ValueError(f"{rule}, got {output}, whose {RECIPES} cannot be read") from None
        if len(stored) != len(recipes):
            raise ValueError(f"{rule}, got {output} with {len(stored)} pictures for {len(recipes)}")
        for ours, theirs in zip(recipes, stored, strict=True):
            for key, value in ours.items():
                if theirs.get(key) != value:
                    raise ValueError(
                        f"{rule}, got {output}, where {key} is {theirs.get(key)!r} instead of {value!r}"
                    )
    elif output.is_dir() and any(found.suffix.lower() in PICTURES for found in output.iterdir()):
        raise ValueError(f"{rule}, got {output}, which holds pictures and no {RECIPES}")


def next_folder(name: str, recipes: Sequence[Recipe]) -> Path:
    """The first of name, name-2, name-3, ... into which these recipes may be drawn."""

    def may_hold(folder: Path) -> bool:
        try:
            check_output(folder, recipes)
        except ValueError:
            return False
        return True

    folders = (Path(name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(folder for folder in folders if may_hold(folder))


def new_folder_beside(output: Path) -> Path:
    """A folder to write into until all is there."""
    beside = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    return beside


def _opened(file: Path) -> Image.Image:
    """A picture in memory, its file closed: a system opens some hundreds at a time."""
    with Image.open(file) as picture:
        return picture.convert("RGB")


def finish(beside: Path, output: Path, recipes: Sequence[Recipe], *, columns: int, title: str) -> None:
    """Adds the list of recipes and the contact sheet to the pictures, and puts all in its place."""
    rows = [{"file": file_name(i), **recipe} for i, recipe in enumerate(recipes)]
    (beside / RECIPES).write_text(json.dumps(rows, indent=1))
    shown = min(len(recipes), MOST_ON_SHEET)
    if shown < len(recipes):
        title += f" (the first {shown} of {len(recipes)})"
    pictures = [_opened(beside / file_name(i)) for i in range(shown)]
    captions = [recipe["prompt"] for recipe in recipes[:shown]]
    sheet = contact_sheet(pictures, captions=captions, columns=columns, title=title)
    sheet.save(beside / SHEET, quality=92)
    check_output(output, recipes)
    if not output.exists():
        beside.rename(output)
        return
    # the list last: pictures that it names are all there
    for file in sorted(beside.iterdir(), key=lambda file: file.name == RECIPES):
        file.replace(output / file.name)
    beside.rmdir()
