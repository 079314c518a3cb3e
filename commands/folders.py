"""Folders of pictures as an audit reads them: opened one by one, with captions only where they are scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .pictures import ATTENTION, BOXES, RECIPES, SHEET, TRACE

if TYPE_CHECKING:
    from PIL.Image import Image


Fit = Callable[["Image", int], "Image"]
AUDIT = "audit.json"
# what commands write beside pictures or numbers: by the file that tells of it
WRITTEN = {AUDIT: (SHEET,), RECIPES: (SHEET, TRACE, BOXES, ATTENTION)}


@dataclass(frozen=True)
class Fitted(Sequence["Image"]):
    """Pictures opened and fitted to `side` pixels whenever they are asked for, so that any number will do."""

    read: Callable[[int], Image]
    length: int
    fit: Fit
    side: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.fit(self.read(index), self.side)


def pictures_of(folder: Path, *, output: Path) -> list[Path]:
    """The pictures to audit: all in the folder but those that `onbrand audit` and `sample` wrote to be read.

    Raises ValueError when none is left.
    """
    from ..evaluation.audit import picture_paths

    found = picture_paths(folder)
    written = {(output / SHEET).resolve()}
    for teller, names in WRITTEN.items():
        written |= {file.with_name(name).resolve() for file in folder.rglob(teller) for name in names}
    kept = [path for path in found if path.resolve() not in written]
    if not kept:
        raise ValueError(f"folder must hold pictures beside contact sheets, got none in {str(folder)!r}")
    return kept


def open_upright(path: Path, *, backdrop: str) -> Image:
    """A picture as a catalogue's are read; Raises ValueError that names a file which cannot be."""
    from ..data.decode import decode_image

    return decode_image(path.read_bytes(), name=repr(str(path)), backdrop=backdrop)


def sizes_of(paths: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """Width and height of each, upright, by its header alone; Raises ValueError that names a bad file."""
    from PIL import Image

    from ..pca.rgb import orientation

    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
                lies = orientation(image) >= 5
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"picture {str(path)!r} must be readable, got {error}") from error
        yield (height, width) if lies else (width, height)


def captions_of(folder: Path, paths: Sequence[Path], *, column: str) -> list[str]:
    """The caption of each picture, by the folder's metadata files or the recipes that `sample` wrote.

    Raises ValueError, which names the folder, where there are none, and the first picture that lacks one.
    """
    from ..data.sources import METADATA, open_tables

    known: dict[Path, str] = {}
    if any(True for name in METADATA for _ in folder.rglob(name)):
        for table in open_tables(folder):
            texts = table.texts(column, what="caption column")
            sources = table.pictures("image")
            known |= {source: text for source, text in zip(sources, texts, strict=True)
                      if isinstance(source, Path) and text}  # fmt: skip
    for recipes in folder.rglob(RECIPES):
        rows = json.loads(recipes.read_text())
        known |= {recipes.parent / row["file"]: row["prompt"] for row in rows if row["prompt"]}
    rule = "--clip needs a caption of every picture, in metadata.jsonl, metadata.csv or samples.json"
    if not known:
        raise ValueError(f"{rule}, got none in {str(folder)!r}")
    if lacking := [path for path in paths if path not in known]:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ValueError(f"{rule}, got none of {str(lacking[0])!r}{more}")
    return [known[path] for path in paths]
