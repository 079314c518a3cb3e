"""The experiments, cell by cell: `python -m onbrand.benchmarks.experiments run central --seed 0`

`run TABLE` trains, draws and measures the cells of a table that are not in results.jsonl yet, `cell NAME`
one of them, `table TABLE` prints what is there. Trainings, pictures and latents are kept in WORK and gone on
with; each cell measured is a line of results.jsonl, so that a table fills up over days and machines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .cells import TABLES, Cell, Comparison
from .measure import measure, measure_real
from .tables import table_of

app = typer.Typer(add_completion=False, no_args_is_help=True)
Work = Annotated[Path, typer.Option(help="Keeps catalogues, latents, trainings and pictures")]
WORK = Path("runs/experiments")
Table = Annotated[str, typer.Argument(help=", ".join(TABLES))]


@app.command()
def run(table: Table, seed: int = 0, work: Work = WORK) -> None:
    """Measures every cell of a table with one training seed."""
    measure_real(work=work)
    for cell in _comparison(table).cells(seed):
        measure(cell, work=work)
    show(table)


@app.command("cell")
def one(name: str, work: Work = WORK) -> None:
    """Measures one cell: `cell "offset / class mean / 0"`."""
    Console().print(measure(Cell.named(name), work=work))


@app.command("table")
def show(table: Table) -> None:
    """Prints what is measured of a table."""
    Console(width=120).print(table_of(_comparison(table)))


def _comparison(name: str) -> Comparison:
    if name not in TABLES:
        raise typer.BadParameter(f"table must be one of {', '.join(TABLES)}, got {name!r}")
    return TABLES[name]


if __name__ == "__main__":
    app()
