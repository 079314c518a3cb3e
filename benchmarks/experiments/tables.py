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
    """A row for every training and start, of the comparison's pictures, also where more are measured.

    Of several training seeds each product has the mean; the error is over products, whose pictures fail
    together. `difference`: of `on brand` from the reference's with the same seeds, in points, every product
    of both sets counting once; its p is the larger of two paired t-tests, over products and over seeds.
    `agreement` is divided by that of real pictures.
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
    table.add_column("difference", justify="right")
    real = known.get(REAL)
    if real:
        table.add_row("real pictures", "", "", *_columns(real, real), "")
        table.add_section()
    best = _lines(known, comparison, comparison.reference)
    for row in comparison.rows:
        lines, told = _lines(known, comparison, row), (row.training, row.told_start)
        if not lines:
            table.add_row(*told, "none")
            continue
        columns = _columns(_mean(list(lines.values())), real) if real else []
        difference = _difference(lines, best) if row != comparison.reference else ""
        table.add_row(*told, str(len(lines)), *columns, difference)
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


def _mean(lines: Sequence[Line]) -> Line:
    """Of each product over lines."""
    return {
        prompts: {name: np.mean([line[prompts][name] for line in lines], axis=0) for name in MEASURES}
        for prompts in SETS
    }


def _columns(line: Line, real: Line) -> list[str]:
    columns = []
    for prompts in SETS:
        kept, agreed, right = (line[prompts][name] for name in MEASURES)
        columns += [
            _with_error(100 * kept, "{:.1f} ± {:.1f} %"),
            _with_error(agreed / real[prompts]["agreement"].mean(), "{:.3f} ± {:.3f}"),
            f"{100 * right.mean():.1f} %",
        ]
    return columns


def _with_error(rates: np.ndarray, form: str) -> str:
    return form.format(rates.mean(), standard_error(rates)) if rates.any() else "0 %"


def _difference(lines: dict[int, Line], best: dict[int, Line]) -> str:
    """From the reference, over the seeds that both have."""
    seeds = sorted(set(lines) & set(best))
    if not seeds:
        return ""
    ours, theirs = (
        np.array([np.concatenate([side[seed][prompts]["on brand"] for prompts in SETS]) for seed in seeds])
        for side in (lines, best)
    )
    found = compare(100 * ours.mean(axis=0), 100 * theirs.mean(axis=0))
    p = found.p_value
    if len(seeds) > 1:
        p = max(p, compare(ours.mean(axis=1), theirs.mean(axis=1)).p_value)
    told = "p < .001" if p < 0.001 else f"p {p:.3f}".replace("0.", ".")
    return f"{found.difference:+.1f} ± {found.standard_error:.1f}, {told}"


def in_markdown(table: Table) -> str:
    """A table of plain text as markdown."""
    marks = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = [[str(column.header) for column in table.columns], marks]
    rows += zip(*(list(column.cells) for column in table.columns), strict=True)
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
