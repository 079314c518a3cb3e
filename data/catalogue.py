"""A catalogue: pictures with captions and classes; loaded, checked and split."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from PIL import Image

from ..pca.rgb import check_colour
from .check import check_pictures
from .picture import Picture
from .processes import ALONE, Processes
from .rows import check_name, read_pictures
from .sources import Location, open_tables

ON_BAD_IMAGE = ("drop", "error")


def load_catalogue(
    source: Location | Sequence[Location],
    *,
    image_columns: Sequence[str] = ("image",),
    caption_column: str | None = "text",
    class_column: str | None = None,
    condition_column: str | None = None,
    image_classes: Mapping[str, str] | None = None,
    class_prefixes: Mapping[str, str] | None = None,
    backdrop: str = "white",
    on_bad_image: str = "drop",
    limit: int | None = None,
    split: str = "train",
    progress: bool = True,
    processes: Processes = ALONE,
) -> "Catalogue":
    """A catalogue from an image folder, .parquet file(s) or a hub id, every picture decoded once as a check.

    Image folders follow imagefolder's convention: metadata.jsonl or .csv with `file_name`, and
    `<column>_file_name` for further pictures of a row. Without metadata the words of the file's name, else of
    its folder's, are the caption. image_columns: the pictures of a row, all under its caption. image_classes:
    image column -> class; other columns take the class from class_column (a column named `class` without
    being told), else from the folder the file is in, else "product" (a lone sub-folder beside metadata,
    such as images/, is no class). class_prefixes: class -> prefix, so that its captions read "prefix,
    caption". condition_column: one more picture a row, of the same scene and aspect ratio (within 1 %), as a
    ControlNet is trained on. Rows without caption, class, picture or condition are dropped and counted in
    `.dropped`; so are unreadable pictures, unless on_bad_image is "error". limit: of rows, from the top.
    split: of a hub data set. processes: those that share the check; all must call this, and get the same.
    caption_column: None for pictures that need no caption, which have then none.
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
        condition_column=condition_column,
        backdrop=backdrop,
        limit=limit,
    )
    for class_name in class_prefixes if found else ():
        check_name(class_name, {picture.class_name for picture in found}, what="class of class_prefixes")
    pictures, unreadable = check_pictures(
        found, fatal=on_bad_image == "error", progress=progress, processes=processes
    )
    dropped += unreadable
    if not pictures:
        raise ValueError(f"catalogue {source} must hold a usable picture, got {len(dropped)} unusable ones")
    return Catalogue(pictures, prefixes=class_prefixes, dropped=dropped)


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
        captions: Iterable[str] | None = None,
    ) -> None:
        self.pictures = list(pictures)
        present = {picture.class_name for picture in self.pictures}
        self.class_names = sorted(present if class_names is None else class_names)
        for class_name in present:
            check_name(class_name, self.class_names, what="class of a picture")
        self.prefixes = dict.fromkeys(self.class_names, "") | dict(prefixes or {})
        self.dropped = list(dropped)
        own = [self._caption(picture) for picture in self.pictures]
        self.captions = own if captions is None else list(captions)
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

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each picture in pixels, upright; opens those that loading did not check."""
        sizes = []
        for picture in self.pictures:
            height, width = picture.size or picture.open().size[::-1]
            sizes.append((height, width))
        return sizes

    @property
    def has_conditions(self) -> bool:
        """Whether every picture has a condition picture; False of an empty catalogue."""
        return bool(self.pictures) and all(picture.condition is not None for picture in self.pictures)

    def condition(self, index: int) -> Image.Image:
        """The condition picture of one picture, upright RGB. Raises ValueError naming it if it has none."""
        return self.pictures[index].open_condition()

    def image_bytes(self, index: int) -> bytes:
        """What stands for a picture's content: its file's bytes, or the recipe it is drawn from."""
        return self.pictures[index].data()

    def fingerprint(self, index: int) -> str:
        """sha256 of a picture's content and backdrop."""
        return self.pictures[index].fingerprint()

    def subset(self, indices: Iterable[int]) -> "Catalogue":
        """The pictures at indices, in that order."""
        kept = [int(index) for index in indices]
        return Catalogue(
            [self.pictures[index] for index in kept],
            class_names=self.class_names,
            prefixes=self.prefixes,
            dropped=self.dropped,
            captions=[self.captions[index] for index in kept],
        )

    def with_prefixes(self, prefixes: Mapping[str, str]) -> "Catalogue":
        """The same pictures under other class prefixes; classes that are not named keep theirs."""
        own = {name: prefix for name, prefix in prefixes.items() if name in self.class_names}
        return Catalogue(
            self.pictures, class_names=self.class_names, prefixes=self.prefixes | own, dropped=self.dropped
        )

    def prefixed(self, word: str) -> "Catalogue":
        """The same pictures with word before every class prefix, as the token of textual inversion.

        Captions read "word prefix, caption", or "word, caption" without a prefix; those that hold the word
        already stay as they are. Raises ValueError if word is empty.
        """
        if not word.strip():
            raise ValueError(f"word must be some text, got {word!r}")
        held = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
        captions = [
            caption
            if held.search(caption)
            else f"{word} {caption}"
            if self.prefixes[picture.class_name]
            else f"{word}, {caption}"
            for caption, picture in zip(self.captions, self.pictures, strict=True)
        ]
        prefixes = {
            name: prefix if held.search(prefix) else f"{word} {prefix}".strip()
            for name, prefix in self.prefixes.items()
        }
        return Catalogue(
            self.pictures,
            class_names=self.class_names,
            prefixes=prefixes,
            dropped=self.dropped,
            captions=captions,
        )

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
