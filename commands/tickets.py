"""onbrand tickets: collects the blocks of noise that a model takes for a concept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from .console import quiet_console, quiet_log
from .launched import start_processes

PARTS, MAPS = "parts", "maps.png"


def tickets(
    checkpoint: str,
    *,
    concepts: list[str],
    noises: int,
    output: Path,
    seed: int,
    layer: str | None,
    both_orders: bool,
    class_name: str | None,
    start: str | None,
    steps: int,
) -> Path:
    """Scores every block of `noises` noises on each concept against each other; writes the collection.

    A collection that is there is extended by the concepts and noises it lacks; an interrupted call goes on
    where it was. Returns the folder. Raises ValueError on a collection of another model or setting.
    """
    console = quiet_console()
    from rich.progress import Progress

    from ..inference.load import load_pipeline
    from ..inference.tickets.collection import FILE, TicketCollection
    from ..inference.tickets.setting import check_concepts, texts_of
    from ..train.models import resolve_base

    known = TicketCollection.load(output) if (output / FILE).is_file() else None
    if known is None:
        check_concepts(concepts)
    else:
        _check_same(
            known, seed=seed, both_orders=both_orders, class_name=class_name, steps=steps,
            layer=layer or known.setting.layer, start=start or known.setting.start,
        )  # fmt: skip
        concepts = [*known.concepts, *(name for name in concepts if name not in known.concepts)]
    processes, device, close = start_processes()
    with quiet_log():
        pipeline = load_pipeline(resolve_base(checkpoint))
    if start == "mean" and pipeline.start_distribution is None:
        raise ValueError(f"--start must be none for {checkpoint}, which has no start distribution, got mean")
    pipeline.to(device)
    total = len(texts_of(concepts, both_orders=both_orders)) * noises
    with Progress(console=console, transient=True, disable=not processes.is_main) as progress:
        bar = progress.add_task("collecting", total=total / processes.count)
        shared: dict[str, Any] = {
            "processes": processes,
            "resume_from": output / PARTS,
            "advance": lambda count: progress.advance(bar, count),
        }
        if known is None:
            found = TicketCollection.build(
                pipeline, concepts, noises=noises, seed=seed, layer=layer, both_orders=both_orders,
                class_name=class_name, start=None if start == "none" else start or "mean",
                num_inference_steps=steps, **shared,
            )  # fmt: skip
        else:
            further = max(0, noises - len(known.seeds))
            found = known.extend(pipeline, concepts[len(known.concepts) :], noises=further, **shared)
    if processes.is_main:
        found.save(output)
        shutil.rmtree(output / PARTS, ignore_errors=True)
        from ..evaluation.score_maps import score_maps

        score_maps(found.concepts, found.scores).save(output / MAPS)
        console.print(_table(found))
        console.print(f"wrote {output}", soft_wrap=True)
    close()
    return output


def _check_same(known: Any, *, seed: int, **wanted: Any) -> None:
    """Raises ValueError on a setting that is not the collection's own."""
    own = {"both_orders": known.setting.both_orders, "class_name": known.setting.class_name,
           "steps": known.setting.steps, "seed": known.seeds[0], "layer": known.setting.layer,
           "start": known.setting.start}  # fmt: skip
    names = {"both_orders": "--both-orders", "class_name": "--class", "steps": "--steps", "seed": "--seed",
             "layer": "--layer", "start": "--start"}  # fmt: skip
    for name, value in (wanted | {"seed": seed}).items():
        if value != own[name]:
            raise ValueError(
                f"{names[name]} must be {own[name]} as in the collection that is there, got {value}"
            )


def _table(found: Any) -> Any:
    from rich.table import Table

    blocks = found.scores.shape[3] * found.scores.shape[4]
    table = Table(title=f"{len(found.seeds)} noises of {blocks} blocks, layer {found.setting.layer}")
    for column in ("concept", "blocks that win against all others", "a noise"):
        table.add_column(column, justify="left" if column == "concept" else "right")
    for name in found.concepts:
        count = _count(lambda name=name: found.winners(name))
        table.add_row(name, str(count), f"{count / len(found.seeds):.1f}")
    count = _count(found.background_winners)
    table.add_row("(background)", str(count), f"{count / len(found.seeds):.1f}")
    return table


def _count(find: Any) -> int:
    try:
        return len(find())
    except ValueError:  # none wins
        return 0
