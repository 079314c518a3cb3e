"""What coupled noise does to galleries: `python benchmarks/galleries.py OUT [--run RUN] [--prompts 200]`

Draws the same prompts from the tiny base, and from RUN's model from its start distribution, with galleries of
two to five whose noises are coupled in different ways; the same seeds everywhere, so that every difference is
paired. One cell is one line of OUT/cells.jsonl; cells that are there are not drawn again. Prints tables and
writes OUT/<set>.md and a picture of the first galleries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from onbrand.assets.classifier import COLOUR_NAMES, read
from onbrand.assets.descriptor import StudioDescriptor
from onbrand.assets.gate import load_classifier
from onbrand.data.studio import CLASSES, Product, draw_products
from onbrand.evaluation import (
    Limits,
    audit,
    compare,
    contact_sheet,
    mean_similarity,
    pairwise_l2,
    pairwise_ssim,
    standard_error,
    vendi_score,
)
from onbrand.inference import load_pipeline
from onbrand.inference.contrastive import ContrastiveNoise
from onbrand.inference.couplings import by_name
from onbrand.inference.generate import generate
from onbrand.pca import Sampler
from onbrand.train.models import TINY_BASE
from rich.console import Console

SEED = 31
METRICS = ("L2", "SSIM", "similarity", "Vendi", "class right", "colour right", "on brand")


@dataclass(frozen=True)
class Cell:
    """One way to draw every prompt's gallery."""

    model: str
    count: int
    coupling: str
    contrastive: bool = False

    def initializer(self) -> Any:
        coupling = by_name(self.coupling)
        return ContrastiveNoise(coupling) if self.contrastive else coupling


RHOS = ("independent", "rho=-0.1", "rho=-0.2", "rho=-0.3", "repulsive")
SETS = {
    "size": [Cell("base", n, c) for n in (2, 3, 4, 5) for c in ("independent", "repulsive")],
    "rho": [Cell("base", 4, c) for c in (*RHOS, "antithetic")],
    "contrastive": [Cell("base", 3, c, k) for c in ("independent", "repulsive") for k in (False, True)],
    "on-brand": [Cell("run", 3, c, k) for c in ("independent", "repulsive") for k in (False, True)],
}


def casts(prompts: int, look: str) -> list[Product]:
    """One product for each prompt."""
    found: list[Product] = []
    for index in range(prompts):
        found.append(draw_products(np.random.default_rng([SEED, index]), look)[0])
    return found


def measure(cell: Cell, pipeline: Any, *, prompts: int, limits: Limits | None, judges: Any) -> dict[str, Any]:
    """Every metric, one value a prompt, with the seconds it took to draw."""
    products = casts(prompts, "on-brand" if cell.model == "run" else "wild")
    began = time.perf_counter()
    pictures = generate(
        pipeline,
        [product.words() for product in products],
        class_names=[product.kind for product in products] if cell.model == "run" else None,
        count=cell.count,
        noise=cell.initializer(),
        sampler=Sampler("DDIMScheduler", 20),
        guidance_scale=2.0 if cell.model == "run" else 3.0,
        seed=SEED,
    )
    seconds = time.perf_counter() - began
    classifier, descriptor = judges
    present, colours = read(classifier, np.stack([np.asarray(picture) for picture in pictures]))
    kept = [True] * len(pictures)
    if limits is not None:
        classes = [product.kind for product in products for _ in range(cell.count)]
        kept = [not found for found in audit(pictures, limits, classes=classes).failures]
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for i, product in enumerate(products):
        own = slice(i * cell.count, (i + 1) * cell.count)
        gallery, kind = pictures[own], CLASSES.index(product.kind)
        features = descriptor(gallery)
        values["L2"].append(pairwise_l2(gallery))
        values["SSIM"].append(pairwise_ssim(gallery))
        values["similarity"].append(mean_similarity(features))
        values["Vendi"].append(vendi_score(features))
        values["class right"].append(float((present[own].argmax(1) == kind).float().mean()))
        meant = COLOUR_NAMES.index(product.colour)
        values["colour right"].append(float((colours[own, kind] == meant).float().mean()))
        values["on brand"].append(float(np.mean(kept[own])))
    if limits is None:
        del values["on brand"]
    return {"seconds": seconds, "values": values, "shown": pictures[: 6 * cell.count]}


def label(cell: Cell) -> str:
    return f"{cell.coupling}{' + contrastive' if cell.contrastive else ''}, N = {cell.count}"


def table(cells: Sequence[Cell], found: dict[Cell, Any]) -> str:
    """Markdown: mean and standard error, and the paired difference from independent noise of the same N."""
    names = list(found[cells[0]]["values"])
    lines = ["| galleries | " + " | ".join(names) + " | seconds |", "|---" + "|---:" * (len(names) + 1) + "|"]
    for cell in cells:
        baseline = found.get(Cell(cell.model, cell.count, "independent"))
        row = []
        for name in names:
            values = found[cell]["values"][name]
            text = f"{np.mean(values):.4f} ± {standard_error(values):.4f}"
            if baseline is not None and cell.coupling + str(cell.contrastive) != "independentFalse":
                gap = compare(values, baseline["values"][name])
                text += f" ({gap.difference:+.4f} ± {gap.standard_error:.4f}, p {gap.p_value:.1g})"
            row.append(text)
        lines.append(f"| {label(cell)} | " + " | ".join(row) + f" | {found[cell]['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def main(
    out: Path,
    run: Annotated[Path | None, typer.Option(help="A finished run of the demo recipe")] = None,
    prompts: int = 200,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    console, file = Console(), out / "cells.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    found = {Cell(**line["cell"]): line for line in done if line["prompts"] == prompts}
    judges = None
    pipelines = {"base": load_pipeline(TINY_BASE), **({"run": load_pipeline(run / "model")} if run else {})}
    for name, cells in SETS.items():
        if any(cell.model not in pipelines for cell in cells):
            continue
        for cell in cells:
            if cell in found:
                continue
            judges = judges or (load_classifier(), StudioDescriptor())
            limits = Limits.load(run / "limits.json") if run and cell.model == "run" else None
            line = measure(cell, pipelines[cell.model], prompts=prompts, limits=limits, judges=judges)
            contact_sheet(line.pop("shown"), columns=2 * cell.count, title=label(cell)).save(
                out / f"{cell.model}_{label(cell).replace(' ', '')}.png"
            )
            found[cell] = line
            with file.open("a") as lines:
                lines.write(json.dumps({"cell": vars(cell), "prompts": prompts, **line}) + "\n")
            console.print(label(cell), f"{line['seconds']:.0f} s")
        (out / f"{name}.md").write_text(table(cells, found))
        console.print((out / f"{name}.md").read_text(), soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
