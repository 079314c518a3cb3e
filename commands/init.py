"""onbrand init: a starter config."""

from __future__ import annotations

from pathlib import Path

from ..configs import find_config


def init(path: Path, *, recipe: str) -> Path:
    """Copies a shipped recipe to `path`, its first line turned into the command that runs it.

    Raises ValueError when the file is already there or the recipe unknown.
    """
    if path.exists():
        raise ValueError(f"config path must be a new file, got {path}, which exists")
    lines = find_config(recipe).read_text().splitlines()
    lines[0] = f"# onbrand train {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path
