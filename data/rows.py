"""Rows of a table -> pictures with captions and classes, still undecoded."""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets

from .picture import Picture, Source

DEFAULT_CLASS = "product"
CLASS_COLUMN = "class"  # read without being asked for


def check_name(name: str, names: Iterable[str], *, what: str) -> None:
    """Raises ValueError, with the nearest name and all of them, if name is not among names."""
    names = sorted(names)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{what} must be one of {names}, got {name!r}{hint}")


def read_pictures(
    tables: "Sequence[Rows]",
    *,
    image_columns: Sequence[str],
    caption_column: str | None,
    class_column: str | None,
    image_classes: Mapping[str, str],
    backdrop: str,
    condition_column: str | None = None,
    limit: int | None = None,
) -> tuple[list[Picture], list[tuple[str, str]]]:
    """The pictures of tables (of the first `limit` rows in all), and (origin, reason) of those left out.

    caption_column: None for pictures that need no caption, whatever the tables have.
    Raises ValueError on a missing column, and on an image column that holds something else.
    """
    pictures: list[Picture] = []
    dropped: list[tuple[str, str]] = []
    columns = [{column: table.pictures(column) for column in image_columns} for table in tables]
    conditions = [
        table.pictures(condition_column, what="condition column") if condition_column else None
        for table in tables
    ]
    folder_is_class = _folder_is_class(tables, columns)
    first_row = 0
    for table, sources, seconds in zip(tables, columns, conditions, strict=True):
        captions = [""] * len(table.table)
        if caption_column is not None:
            captions = table.texts(caption_column, what="caption column")
        named = class_column or (CLASS_COLUMN if CLASS_COLUMN in table.table.column_names else None)
        classes = table.texts(named, what="class column") if named else None
        for row, caption in enumerate(captions[: None if limit is None else max(0, limit - first_row)]):
            for column in image_columns:
                source = sources[column][row]
                folder = table.subfolder(source) if folder_is_class else ""
                class_name = classes[row] if classes else folder or DEFAULT_CLASS
                class_name = image_classes.get(column, class_name)
                origin = table.origin(row, column, source)
                lacking = [("picture", source), ("class", class_name)]
                if caption_column is not None:
                    lacking.insert(1, ("caption", caption))
                if seconds is not None:
                    lacking.append(("condition picture", seconds[row]))
                if missing := [what for what, value in lacking if not value]:
                    dropped.append((origin, f"no {missing[0]}"))
                    continue
                number, condition = first_row + row, seconds[row] if seconds else None
                pictures.append(
                    Picture(
                        source, caption, class_name, number, origin, backdrop=backdrop, condition=condition
                    )
                )
        first_row += len(captions)
    return pictures, dropped


def _folder_is_class(tables: "Sequence[Rows]", columns: Sequence[Mapping[str, Sequence[Source]]]) -> bool:
    folders = {
        table.subfolder(source)
        for table, sources in zip(tables, columns, strict=True)
        for column in sources.values()
        for source in column
    }
    # One images/ beside its metadata.jsonl says where pictures lie, not what they show.
    return len(folders - {""}) > 1 or any(not table.name for table in tables)


@dataclass(frozen=True)
class Rows:
    """The rows of one file, folder or data set.

    name: of the file they stand in, "" where there are only the pictures themselves. folder: where relative
    picture paths start. root: the catalogue's folder, whose sub-folders may be classes. first_line: line of
    the first row in its file.
    """

    table: datasets.Dataset
    name: str
    folder: Path | None = None
    root: Path | None = None
    first_line: int = 1

    def texts(self, column: str, *, what: str) -> list[str]:
        """A column as stripped strings, "" where it is empty; class labels by name.

        Raises ValueError, with the nearest name, if there is no such column, and if it holds lists.
        """
        check_name(column, self.table.column_names, what=what)
        feature, values = self.table.features[column], self.table[column][:]
        if not isinstance(feature, datasets.Value | datasets.ClassLabel):
            raise ValueError(f"{what} {column!r} must hold one text a row, got {feature}")
        if isinstance(feature, datasets.ClassLabel):
            values = [None if value is None else feature.int2str(value) for value in values]
        return ["" if value is None else str(value).strip() for value in values]

    def pictures(self, column: str, *, what: str = "image column") -> list[Source]:
        """A column as picture sources: a path, or a function that reads its row when asked; None where empty.

        Raises ValueError if there is no such column, it holds no pictures, or a path leaves the folder.
        """
        check_name(column, self.table.column_names, what=what)
        feature = self.table.features[column]
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string"):
            return [self._path(name) if name else None for name in self.table[column][:]]
        view = self.table.select_columns(column)
        if isinstance(feature, datasets.Image):
            view = view.cast_column(column, datasets.Image(decode=False))
        elif getattr(feature, "dtype", "") not in ("binary", "large_binary") and not _is_struct(feature):
            raise ValueError(f"{what} {column!r} must hold images, bytes or paths, got {feature}")
        return [partial(self._read, view, column, row) for row in range(len(view))]

    def subfolder(self, source: Source) -> str:
        """Name of the folder a picture lies in, "" for the root and for pictures that are no files."""
        if not isinstance(source, Path) or self.root is None or source.parent == self.root:
            return ""
        return source.parent.name

    def origin(self, row: int, column: str, source: Source) -> str:
        """What errors and tables call a picture: its file, row and name."""
        line = f"{self.name}:{row + self.first_line} " if self.name else ""
        if isinstance(source, Path) and self.folder is not None:
            return line + source.relative_to(self.folder).as_posix()
        return line + column

    def _path(self, name: str) -> Path:
        relative = Path(os.path.normpath(name))
        if self.folder is None or relative.is_absolute() or relative.parts[:1] == ("..",):
            raise ValueError(f"picture paths in {self.name} must lie inside its folder, got {name!r}")
        return self.folder / relative

    def _read(self, view: datasets.Dataset, column: str, row: int) -> bytes | Path | None:
        value = view[row][column]
        if isinstance(value, dict):
            value = value["bytes"] if value["bytes"] is not None else value["path"]
        if isinstance(value, str):
            return Path(value) if self.folder is None else self.folder / value
        return value


def _is_struct(feature: object) -> bool:
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}
