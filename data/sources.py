"""Where a catalogue lies -> tables of rows, through `datasets`; no picture is opened here."""

import csv
import glob
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from .rows import Rows

Location = str | os.PathLike
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# What cameras and programs call files: "IMG_0012" says nothing about the product.
NO_WORD = re.compile(r"(img|dsc[nf]?|pxl|image|photo|picture)?\d*", re.IGNORECASE)


def open_tables(source: Location | Sequence[Location], *, split: str = "train") -> list[Rows]:
    """The tables of a catalogue: an image folder, a .parquet file, a list of either, or a hub id.

    A folder is read by its metadata.jsonl, .csv or .parquet files (imagefolder's convention), else its other
    .parquet files, else its pictures, named by the words of file or folder. Local paths never touch the
    network. split: of a hub data set.
    Raises ValueError if there is nothing of the kind, or `datasets` cannot read it.
    """
    if not isinstance(source, str | os.PathLike):
        return [table for part in source for table in open_tables(part, split=split)]
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder_tables(path)
    if path.is_file() and path.suffix == ".parquet":
        return [_parquet_table([path], name=path.name)]
    if not path.exists() and isinstance(source, str) and HUB_ID.fullmatch(source):
        return [Rows(_load(source, what=source, split=split), name=source)]
    raise ValueError(
        "catalogue source must be an existing folder of pictures, a .parquet file, a list of them or a hub "
        f"id, got {str(source)!r}"
    )


def name_words(file: Path) -> str:
    """The words of a picture's file name, else those of its folder, "" if neither says anything."""
    for name in (file.stem, file.parent.name):
        words = [word for word in re.split(r"[\s_.-]+", name) if not NO_WORD.fullmatch(word)]
        if words:
            return " ".join(words)
    return ""


def _folder_tables(root: Path) -> list[Rows]:
    if metadata := sorted(file for name in METADATA for file in root.rglob(name)):
        if len(kinds := sorted({file.name for file in metadata})) > 1:
            raise ValueError(f"catalogue {root} must have metadata files of one kind, got {kinds}")
        return [_metadata_table(file, root=root) for file in metadata if file.stat().st_size]
    if parquet := sorted(root.rglob("*.parquet")):
        return [_parquet_table(parquet, name=root.name)]
    seen = [file.relative_to(root) for file in sorted(root.rglob("*"))]
    files = [file for file in seen if file.suffix.lower() in ImageFolder.EXTENSIONS]
    files = [file for file in files if not any(part.startswith(".") for part in file.parts)]
    rows = {"image": [file.as_posix() for file in files], "text": [name_words(file) for file in files]}
    return [Rows(datasets.Dataset.from_dict(rows), name="", folder=root, root=root)] if files else []


def _metadata_table(file: Path, *, root: Path) -> Rows:
    # Not "imagefolder": that hands `file_name` to whichever image column comes first when a row has several,
    # and reads several metadata files in no fixed order. Nor its readers of text: they take 001 for a number,
    # NA for nothing and 2024-01-01 for midnight.
    try:
        rows = READERS[file.suffix](file)
    except Exception as error:
        raise ValueError(f"catalogue {file} must be readable as {file.suffix[1:]}, got {error}") from error
    for column in rows.column_names:
        picture = column.removesuffix("file_name").removesuffix("_") or "image"
        if column.endswith("file_name") and picture not in rows.column_names:
            rows = rows.rename_column(column, picture)
    name, first_line = file.relative_to(root).as_posix(), 2 if file.suffix == ".csv" else 1
    return Rows(rows, name=name, folder=file.parent, root=root, first_line=first_line)


def _read_csv(file: Path) -> datasets.Dataset:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        rows = list(reader)
        columns = reader.fieldnames or []
    for number, row in enumerate(rows, 2):
        if None in row:
            raise ValueError(f"row {number} with more than its {len(columns)} columns")
    return _table(rows, columns)


def _read_lines(file: Path) -> datasets.Dataset:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                rows.append(dict(json.loads(line)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"line {number}, which is no object of JSON: {error}") from error
    return _table(rows, dict.fromkeys(name for row in rows for name in row))


def _table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns})


def _read_parquet(file: Path) -> datasets.Dataset:
    # anew each time, since the cache of `datasets` goes by modification time alone
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {"split": "train", "cache_dir": folder, "keep_in_memory": True}
        return datasets.load_dataset("parquet", data_files=_verbatim([file]), **how)


READERS = {".jsonl": _read_lines, ".csv": _read_csv, ".parquet": _read_parquet}


def _parquet_table(files: list[Path], *, name: str) -> Rows:
    rows = _load("parquet", what=str(files[0]), data_files=_verbatim(files), split="train")
    return Rows(rows, name=name, folder=files[0].parent)


def _verbatim(files: list[Path]) -> dict[str, list[str]]:
    return {"train": [glob.escape(str(file.absolute())) for file in files]}


def _load(reader: str, *, what: str, **settings: Any) -> datasets.Dataset:
    try:
        return datasets.load_dataset(reader, **settings)
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(f"catalogue {what} must be readable by datasets, got {cause}") from error
