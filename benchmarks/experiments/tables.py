"""A table of what is measured, with errors and paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onbrand.evaluation.paired import compare, standard_error
from rich.table import Table

from .catalogue import SETS, products
from .cells import Cell, Comparison
from .measure import REAL, results, values

Line = dict[str, dict[str, np.ndarray]]  # set of prompts -> measure -> mean of each product
MEASURES = {"on brand": "kept", "agreement": "agreed", "right": "right"}


def table_of(comparison: Comparison) -> Table:
    """A row for every training and start; p of a paired t-test of `on brand` against the reference.

    Errors and tests are over training seeds where there are several, else over products, whose pictures
    fail together. Every row is of the comparison's pictures, also where more are measured. `agreement` is
    divided by that of real pictures.
    """
    known = {
        name: {prompts: _of_products(line, prompts, comparison.pictures) for prompts in SETS}
        for name, line in results().items()
    }
    table = Table(title=comparison.title)
    for name in ("trained", "started from", "seeds"):
        table.add_column(name)
    for prompts in SETS:
        for name in MEASURES:
            table.add_column(f"{name}, {prompts}", justify="right")
    table.add_column("p")
    real = known.get(REAL)
    if real:
        table.add_row("real pictures", "", "", *_columns([real], real), "")
        table.add_section()
    best = _lines(known, comparison, comparison.reference)
    for row in comparison.rows:
        lines, told = _lines(known, comparison, row), (row.training, row.told_start)
        if not lines:
            table.add_row(*told, "none")
            continue
        p = _p_value(lines, best) if row != comparison.reference else ""
        table.add_row(*told, str(len(lines)), *(_columns(list(lines.values()), real) if real else []), p)
    return table


def _of_products(line: dict[str, Any], prompts: str, pictures: int) -> dict[str, np.ndarray]:
    """Each measure's mean over the pictures of each product, (products,)."""
    found = {}
    for name, key in MEASURES.items():
        of_picture = values(line, prompts, key)[:pictures]
        product = np.arange(len(of_picture)) % len(products()[prompts])
        found[name] = np.bincount(product, of_picture) / np.bincount(product)
    return found


def _lines(known: dict[str, Line], comparison: Comparison, row: Cell) -> dict[int, Line]:
    """What is measured of a row, by training seed."""
    names = {seed: replace(row, seed=seed).name for seed in comparison.seeds}
    return {seed: known[name] for seed, name in names.items() if name in known}


def _columns(lines: Sequence[Line], real: Line) -> list[str]:
    columns = []
    for prompts in SETS:
        kept, agreed, right = ([line[prompts][name] for line in lines] for name in MEASURES)
        real_agreed = real[prompts]["agreement"].mean()
        columns += [
            _with_error([100 * rates for rates in kept], "{:.1f} ± {:.1f} %"),
            _with_error([rates / real_agreed for rates in agreed], "{:.3f} ± {:.3f}"),
            f"{100 * np.mean(right):.1f} %",
        ]
    return columns


def _with_error(rates: Sequence[np.ndarray], form: str) -> str:
    """The mean of the seeds' rates of each product, with its standard error."""
    units = [float(rate.mean()) for rate in rates] if len(rates) > 1 else rates[0]
    if not np.any(units):
        return "0 %"
    return form.format(np.mean(units), standard_error(units))


def _p_value(lines: dict[int, Line], best: dict[int, Line]) -> str:
    """Over the seeds that both have, of one over its products."""
    seeds = sorted(set(lines) & set(best))
    if not seeds:
        return ""
    ours, theirs = (
        [np.concatenate([found[seed][prompts]["on brand"] for prompts in SETS]) for seed in seeds]
        for found in (lines, best)
    )
    if len(seeds) > 1:
        found = compare(*([float(rates.mean()) for rates in side] for side in (ours, theirs)))
    else:
        found = compare(ours[0], theirs[0])
    return "< .001" if found.p_value < 0.001 else f"{found.p_value:.3f}"


def in_markdown(table: Table) -> str:
    """A table of plain text as markdown."""
    marks = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = [[str(column.header) for column in table.columns], marks]
    rows += zip(*(list(column.cells) for column in table.columns), strict=True)
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
