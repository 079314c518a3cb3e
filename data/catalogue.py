"""A catalogue: pictures with captions and classes; loaded, checked and split."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image

from .decode import UnreadablePicture, check_colour
from .picture import Picture
from .progress import picture_bar
from .rows import check_name, read_pictures
from .sources import Location, open_tables

ON_BAD_IMAGE = ("drop", "error")


def load_catalogue(
    source: Location | Sequence[Location],
    *,
    image_columns: Sequence[str] = ("image",),
    caption_column: str = "text",
    class_column: str | None = None,
    image_classes: Mapping[str, str] | None = None,
    class_prefixes: Mapping[str, str] | None = None,
    backdrop: str = "white",
    on_bad_image: str = "drop",
    limit: int | None = None,
    split: str = "train",
    progress: bool = True,
) -> "Catalogue":
    """A catalogue from an image folder, .parquet file(s) or a hub id, every picture decoded once as a check.

    Image folders follow imagefolder's convention: metadata.jsonl or .csv with `file_name`, and
    `<column>_file_name` for further pictures of a row. Without metadata the words of the file's name, else of
    its folder's, are the caption. image_columns: the pictures of a row, all under its caption. image_classes:
    image column -> class; other columns take the class from class_column (a column named `class` without
    being told), else from the folder the file is in, else "product" (a lone sub-folder beside metadata,
    such as images/, is no class). class_prefixes: class -> prefix, so that its captions read "prefix,
    caption". Rows without caption, class or picture are dropped and counted in `.dropped`; so are
    unreadable pictures, unless on_bad_image is "error". limit: of rows, from the top. split: of a hub
    data set.
    Raises ValueError on a missing column (with the nearest name), an unknown class or image column in the
    mappings, an unreadable picture if asked to (file and row named), and if nothing is left.
    """
    if on_bad_image not in ON_BAD_IMAGE:
        raise ValueError(f"on_bad_image must be one of {ON_BAD_IMAGE}, got {on_bad_image!r}")
    check_colour(backdrop)
    image_classes, class_prefixes = image_classes or {}, class_prefixes or {}
    for column in image_classes:
        check_name(column, image_columns, what="image column of image_classes")
    found, dropped = read_pictures(
        open_tables(source, split=split),
        image_columns=image_columns,
        caption_column=caption_column,
        class_column=class_column,
        image_classes=image_classes,
        backdrop=backdrop,
        limit=limit,
    )
    for class_name in class_prefixes if found else ():
        check_name(class_name, {picture.class_name for picture in found}, what="class of class_prefixes")
    pictures, unreadable = check_pictures(found, fatal=on_bad_image == "error", progress=progress)
    dropped += unreadable
    if not pictures:
        raise ValueError(f"catalogue {source} must hold a usable picture, got {len(dropped)} unusable ones")
    return Catalogue(pictures, prefixes=class_prefixes, dropped=dropped)


def check_pictures(
    pictures: Sequence[Picture], *, fatal: bool = False, progress: bool = True
) -> tuple[list[Picture], list[tuple[str, str]]]:
    """The pictures that decode, and (origin, reason) of the others; decodes each once, in threads.

    Raises ValueError naming the first unreadable picture if fatal.
    """

    def reason(picture: Picture) -> str:
        try:
            picture.open()
        except UnreadablePicture as error:
            if fatal:
                raise
            return error.reason
        return ""

    good: list[Picture] = []
    bad: list[tuple[str, str]] = []
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        picture_bar("checking pictures", len(pictures), shown=progress) as advance,
    ):
        for picture, why in zip(pictures, pool.map(reason, pictures), strict=True):
            if why:
                bad.append((picture.origin, why))
            else:
                good.append(picture)
            advance(1)
    return good, bad


def _held_out_rows(pictures: Sequence[Picture], fraction: float, generator: torch.Generator) -> set[int]:
    classes: dict[int, set[str]] = defaultdict(set)
    for picture in pictures:
        classes[picture.row].add(picture.class_name)
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, names in classes.items():
        alike[tuple(sorted(names))].append(row)
    held: set[int] = set()
    for _, rows in sorted(alike.items()):
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1) if fraction else 0
        held.update(rows[i] for i in torch.randperm(len(rows), generator=generator)[:count].tolist())
    return held


class Catalogue:
    """A flat list of pictures with captions and classes; pictures are opened only when asked for.

    Attributes, one entry a picture: `pictures`; `captions`, prefix included; `class_ids` (N,) int64; `rows`,
    shared by pictures under one text; `origins`, their file and row; `attributes`, what else is known.
    Of the whole: `class_names`, sorted; `prefixes`, class -> caption prefix or ""; `dropped`, (origin,
    reason) of what loading left out. Subsets keep class names, prefixes and dropped list of the whole.
    """

    def __init__(
        self,
        pictures: Iterable[Picture],
        *,
        class_names: Iterable[str] | None = None,
        prefixes: Mapping[str, str] | None = None,
        dropped: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.pictures = list(pictures)
        present = {picture.class_name for picture in self.pictures}
        self.class_names = sorted(present if class_names is None else class_names)
        for class_name in present:
            check_name(class_name, self.class_names, what="class of a picture")
        self.prefixes = dict.fromkeys(self.class_names, "") | dict(prefixes or {})
        self.dropped = list(dropped)
        self.captions = [self._caption(picture) for picture in self.pictures]
        number = {name: i for i, name in enumerate(self.class_names)}
        self.class_ids = torch.tensor([number[p.class_name] for p in self.pictures], dtype=torch.long)
        self.rows = [picture.row for picture in self.pictures]
        self.origins = [picture.origin for picture in self.pictures]
        self.attributes = [dict(picture.attributes) for picture in self.pictures]

    def __len__(self) -> int:
        return len(self.pictures)

    def image(self, index: int) -> Image.Image:
        """One picture, upright RGB. Raises ValueError naming it if it can no longer be read."""
        return self.pictures[index].open()

    def image_bytes(self, index: int) -> bytes:
        """What stands for a picture's content: its file's bytes, or the recipe it is drawn from."""
        return self.pictures[index].data()

    def fingerprint(self, index: int) -> str:
        """sha256 of a picture's content and backdrop."""
        return self.pictures[index].fingerprint()

    def subset(self, indices: Iterable[int]) -> "Catalogue":
        """The pictures at indices, in that order."""
        pictures = [self.pictures[int(index)] for index in indices]
        return Catalogue(pictures, class_names=self.class_names, prefixes=self.prefixes, dropped=self.dropped)

    def split(self, held_out: float, seed: int) -> "tuple[Catalogue, Catalogue]":
        """(training, held-out): whole rows, drawn class by class.

        held_out: share of each class's rows (of rows with the same classes, where a row has several),
        rounded, at least one row and never all of them; 0 holds out nothing.
        Raises ValueError unless 0 <= held_out < 1.
        """
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out must be at least 0 and below 1, got {held_out}")
        held = _held_out_rows(self.pictures, held_out, torch.Generator().manual_seed(seed))
        train = [i for i, row in enumerate(self.rows) if row not in held]
        return self.subset(train), self.subset(i for i, row in enumerate(self.rows) if row in held)

    def _caption(self, picture: Picture) -> str:
        prefix = self.prefixes[picture.class_name]
        return f"{prefix}, {picture.caption}" if prefix else picture.caption
