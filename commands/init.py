"""onbrand init: a starter config."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..configs import find_config


def init(path: Path, *, recipe: str) -> str:
    """Copies a shipped recipe to `path`; returns the command that trains it, which is the first line too.

    Raises ValueError when the file is already there or the recipe unknown.
    """
    if path.exists():
        raise ValueError(f"config path must be a new file, got {path}, which exists")
    lines = find_config(recipe).read_text().splitlines()
    _, _, _, _, *overrides = lines[0].split()  # onbrand train RECIPE and what must be said beside it
    command = " ".join(["onbrand train", shlex.quote(str(path)), *overrides])
    lines[0] = f"# {command}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return command
