"""What is to be drawn: prompts from the command line, or from a text, JSONL or CSV file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FIELDS = ("prompt", "class", "seed", "negative_prompt")
MOST_SEED = 2**63 - 1


class Gallery(NamedTuple):
    """Pictures of one prompt: picture j has the noise of seed + j."""

    prompt: str
    class_name: str | None
    seed: int
    negative: str | None


def read_galleries(
    prompts: list[str], *, count: int, class_name: str | None, negative: str | None, seed: int
) -> list[Gallery]:
    """A gallery for each prompt as given; `@FILE` stands for the file's.

    A file's lines are prompts, a .jsonl or .csv file's rows may also say class, seed and negative_prompt, in
    place of the arguments of that name. Gallery i has the seed `seed + i * count` where no row says another.
    Raises ValueError on a missing or unreadable file, on a row that says something else, and if none is left.
    """
    found: list[dict[str, Any]] = []
    for prompt in prompts:
        found += _read(Path(prompt[1:])) if prompt.startswith("@") else [{"prompt": prompt}]
    if not found:
        raise ValueError(f"prompts must be at least one, got none in {prompts}")
    return [
        Gallery(
            row["prompt"],
            row.get("class", class_name),
            row.get("seed", seed + i * count),
            row.get("negative_prompt", negative),
        )
        for i, row in enumerate(found)
    ]


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise ValueError(f"prompt file must exist, got {str(file)!r}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"prompt file must be text in UTF-8, got {str(file)!r}") from None
    lines = text.split("\n")  # JSON may hold the other marks at which `splitlines` breaks
    if file.suffix == ".jsonl":
        rows = _json_rows(lines, file)
    elif file.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text))
        rows = ((f"{file}, line {reader.line_num}", row) for row in reader)
    else:
        return [{"prompt": line.strip()} for line in lines if line.strip()]
    return [_checked(row, where) for where, row in rows]


def _json_rows(lines: list[str], file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{file}, line {number}"
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} must be JSON, got {line.strip()[:80]!r}: {error}") from None


def _checked(row: Any, where: str) -> dict[str, Any]:
    """The row's fields that say something."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be an object with a prompt, got {row!r}")
    if extra := [key for key in row if key not in FIELDS]:
        raise ValueError(f"{where} must have no fields but {', '.join(FIELDS)}, got {extra[0]!r}")
    row = {key: value for key, value in row.items() if value not in (None, "")}
    for key in ("prompt", "class", "negative_prompt"):
        if not isinstance(row.get(key, "" if key != "prompt" else None), str):
            raise ValueError(f"{where}: {key} must be text, got {row.get(key)!r}")
    if "seed" in row:
        seed = row["seed"]
        if isinstance(seed, bool) or not str(seed).isdecimal() or int(seed) > MOST_SEED:
            raise ValueError(f"{where}: seed must be an integer from 0 to {MOST_SEED}, got {seed!r}")
        row["seed"] = int(seed)
    return row
