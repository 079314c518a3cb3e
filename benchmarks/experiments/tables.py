"""A table of what is measured, with errors and paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onbrand.evaluation.paired import compare
from rich.table import Table

from .catalogue import SETS
from .cells import Cell, Comparison
from .measure import REAL, bits, results

Lines = Sequence[dict[str, Any]]


def table_of(comparison: Comparison) -> Table:
    """A row for every training and start; p of a paired test against the comparison's reference.

    Errors are standard errors over training seeds, of one seed over pictures. `agreement` is divided by that
    of real pictures.
    """
    known = results()
    table = Table(title=comparison.title)
    for name in ("trained", "started from", "seeds"):
        table.add_column(name)
    for prompts in SETS:
        for name in ("on brand", "agreement", "right"):
            table.add_column(f"{name}, {prompts}", justify="right")
    table.add_column("p")
    if REAL in known:
        table.add_row("real pictures", "", "", *_columns([known[REAL]], known[REAL]), "")
        table.add_section()
    best = _lines(known, comparison, comparison.reference)
    for row in comparison.rows:
        lines, told = _lines(known, comparison, row), (row.training, row.told_start)
        if not lines:
            table.add_row(*told, "none")
            continue
        columns = _columns(lines, known[REAL]) if REAL in known else []
        p = _p_value(lines, best) if row != comparison.reference else ""
        table.add_row(*told, str(len(lines)), *columns, p)
    return table


def _lines(known: dict[str, dict[str, Any]], comparison: Comparison, row: Cell) -> Lines:
    names = [replace(row, seed=seed).name for seed in comparison.seeds]
    return [known[name] for name in names if name in known]


def _columns(lines: Lines, real: dict[str, Any]) -> list[str]:
    columns = []
    for prompts in SETS:
        passed = np.array([line[prompts]["pass"] for line in lines])
        ratio = np.array([line[prompts]["agreement"] for line in lines]) / real[prompts]["agreement"]
        right = np.array([bits(line, prompts, "right").mean() for line in lines])
        n = lines[0][prompts]["n"]
        error = [line[prompts]["agreement error"] / real[prompts]["agreement"] for line in lines]
        columns += [
            _with_error(100 * passed, 100 * np.sqrt(passed * (1 - passed) / n), "{:.1f} ± {:.1f} %"),
            _with_error(ratio, np.array(error), "{:.3f} ± {:.3f}"),
            f"{100 * right.mean():.1f} %",
        ]
    return columns


def _with_error(values: np.ndarray, errors: np.ndarray, form: str) -> str:
    """The mean with its error over seeds, of one seed with the one given."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else errors[0]
    return form.format(values.mean(), error)


def _p_value(lines: Lines, best: Lines) -> str:
    """Paired test of passing the audit, on the pictures and the seeds that both have."""
    seeds = {line["cell"].split(" / ")[2]: line for line in best}
    pairs = [(line, seeds[seed]) for line in lines if (seed := line["cell"].split(" / ")[2]) in seeds]
    if not pairs:
        return ""
    kept = [
        # a cell with fewer pictures has the first ones of the other
        pair
        for mine, reference in pairs
        for prompts in SETS
        for pair in zip(bits(mine, prompts, "kept"), bits(reference, prompts, "kept"), strict=False)
    ]
    ours, theirs = np.array(kept, dtype=float).T
    found = compare(ours, theirs).p_value
    return "< .001" if found < 0.001 else f"{found:.3f}"


def in_markdown(table: Table) -> str:
    """A table of plain text as markdown."""
    marks = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = [[str(column.header) for column in table.columns], marks]
    rows += zip(*(list(column.cells) for column in table.columns), strict=True)
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
