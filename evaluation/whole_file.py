"""Text files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(text: str, path: str | os.PathLike[str]) -> Path:
    """Writes UTF-8 beside `path`, then renames, so that no half-written file is ever seen; returns the path.

    Folders are made as needed. Lone surrogates, as a file name that is no text has, are written as "?".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    beside.write_text(text, encoding="utf-8", errors="replace")
    beside.replace(path)
    return path
