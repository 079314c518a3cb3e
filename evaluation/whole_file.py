"""Files and folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a place beside `path` to write a file or folder at, renamed to `path` when the block ends well.

    One that fails leaves `path` as it was. What a killed writer left beside is removed, and the folders above
    are made. For one writer at a time: several would share the place.
    """
    path = Path(path)
    beside, earlier = path.with_name(f"{path.name}.partial"), _earlier(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    _remove(beside)
    try:
        yield beside
        if path.is_dir():  # gives way to no rename
            _remove(earlier)
            path.rename(earlier)
        beside.replace(path)
        _remove(earlier)
    finally:
        _remove(beside)
        recover(path)


def recover(path: str | os.PathLike[str]) -> None:
    """Puts an earlier folder back where a writer was killed between the two renames of `whole`."""
    path = Path(path)
    if _earlier(path).exists() and not path.exists():
        _earlier(path).rename(path)


def write_whole(text: str, path: str | os.PathLike[str]) -> Path:
    """Writes UTF-8 beside `path`, then renames, so that no half-written file is ever seen; returns the path.

    Folders are made as needed. Lone surrogates, as a file name that is no text has, are written as "?".
    """
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="replace")
    return Path(path)


def _earlier(path: Path) -> Path:
    return path.with_name(f"{path.name}.earlier")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
