"""The experiments, cell by cell: `python -m onbrand.benchmarks.experiments run central --seed 0`

`run TABLE` trains, draws and measures the cells of a table that are not in results.jsonl yet, `cell NAME`
one of them, `table TABLE` prints what is there. Trainings, pictures and latents are kept in WORK and gone on
with; each cell measured is a line of results.jsonl, so that a table fills up over days and machines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from onbrand.train.judge import side_by_side
from PIL import Image
from rich.console import Console

from .catalogue import PICTURES, SETS, products, real_pictures
from .cells import TABLES, Cell, Comparison
from .draw import pictures_of
from .measure import measure, measure_real, results
from .tables import in_markdown, table_of

app = typer.Typer(add_completion=False, no_args_is_help=True)
Work = Annotated[Path, typer.Option(help="Keeps catalogues, latents, trainings and pictures")]
WORK = Path("runs/experiments")
SHOWN = 8
Table = Annotated[str, typer.Argument(help=", ".join(TABLES))]


@app.command()
def run(table: Table, seed: int = 0, work: Work = WORK) -> None:
    """Measures every cell of a table with one training seed."""
    measure_real(work=work)
    comparison = _comparison(table)
    for cell in comparison.cells(seed):
        measure(cell, pictures=comparison.pictures, work=work)
    show(table)


@app.command("cell")
def one(name: str, pictures: int = PICTURES, work: Work = WORK) -> None:
    """Measures one cell with so many pictures of each set: `cell "offset / class mean / 0"`."""
    Console().print(measure(Cell.named(name), pictures=pictures, work=work))


@app.command("table")
def show(
    table: Table, markdown: Annotated[bool, typer.Option(help="As the documentation has it")] = False
) -> None:
    """Prints what is measured of a table."""
    found = table_of(_comparison(table))
    if markdown:
        typer.echo(in_markdown(found))
    else:
        Console(width=160).print(found)


@app.command()
def sheet(table: Table, file: Path, seed: int = 0, work: Work = WORK) -> None:
    """Writes a picture: a row a cell that is measured, the same products and noises down a column."""
    known, rows = results(), {"real": shown_first(np.stack(real_pictures(work=work)))}
    once = max(len(products()[name]) for name in SETS)  # every product
    for cell in _comparison(table).cells(seed):
        if cell.name in known:
            drawn = pictures_of(cell, pictures=once, work=work)
            rows[f"{cell.training}, {cell.told_start}"] = shown_first(drawn)
    side_by_side(rows, columns=SHOWN).save(file)


def shown_first(pictures: np.ndarray) -> list[Image.Image]:
    """One product of each kind: every other kind from the catalogue's prompts, the others from new ones."""
    places = []
    for i in range(SHOWN):
        of_kind = len(products()[SETS[i % 2]]) // SHOWN
        places.append(i % 2 * (len(pictures) // len(SETS)) + i * of_kind + 5 * i % of_kind)
    return [Image.fromarray(pictures[place]) for place in places]


def _comparison(name: str) -> Comparison:
    if name not in TABLES:
        raise typer.BadParameter(f"table must be one of {', '.join(TABLES)}, got {name!r}")
    return TABLES[name]


if __name__ == "__main__":
    app()
