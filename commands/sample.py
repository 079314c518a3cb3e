"""onbrand sample: prompts to PNGs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from .console import notes_once, quiet_console, quiet_log
from .launched import start_processes
from .request import Request


def sample(request: Request, *, output: Path | None, trace: bool = False) -> Path:
    """Draws the request's pictures into `output`; returns the contact sheet. trace: draws trace.png too.

    output: `samples` if None, or the next of samples-2, samples-3 that holds nothing else.

    Started as several processes they share the work, and the first one writes what is written once.
    Raises ValueError, naming the option, on a request that the checkpoint cannot meet, and on an output
    folder with other pictures.
    """
    console = quiet_console()
    from ..train.models import resolve_base
    from .checkpoint import facts_of_folder, facts_of_pipeline, open_pipeline, settle
    from .coupled import check_layout
    from .drawing import Drawing
    from .pictures import SHEET, check_output, finish, new_folder_beside, next_folder
    from .recipes import recipes_of

    path = resolve_base(request.checkpoint)
    if trace and (unlike := request.unlike_a_trace()):
        raise ValueError(f"--trace must not be given beside {unlike}: it follows one picture's own noise")
    if output is not None:
        check_output(output.absolute(), request.known())
    if facts := facts_of_folder(path):
        settle(request, facts)
    processes, device, close = start_processes()
    if request.offload:
        check_offload(device)
    with quiet_log():
        pipeline, weights = open_pipeline(path, request, device=device)
    if pipeline.start_distribution is None and processes.is_main:
        console.print(
            f"note: {request.checkpoint} has no start distribution: it samples as a plain pipeline",
            soft_wrap=True,
        )
    settled = settle(request, facts_of_pipeline(pipeline))
    together = None
    if request.aggregate:
        from .aggregated import Together

        with quiet_log():
            together = Together.of(request, settled, pipeline, device=device)
    others = together.recipes() if together else []
    recipes = recipes_of(request, settled, pipeline, weights=weights, others=others, device=device.type)
    free = next_folder("samples", recipes) if output is None and processes.is_main else output
    output = Path(processes.gather([str(free.absolute()) if free else ""])[0])
    check_output(output, recipes)
    if request.layout is not None:
        check_layout(request, settled, pipeline)
    drawing = Drawing(request, settled, pipeline, together)
    beside = Path(processes.gather([str(new_folder_beside(output)) if processes.is_main else ""])[0])
    try:
        with notes_once(console.print if processes.is_main else None):
            _draw(drawing, recipes, folder=beside, processes=processes)
            if trace:
                processes.map(lambda _: drawing.trace(beside), [0])
        columns = min(8, request.count * max(1, 8 // request.count))  # whole galleries a row
        title = f"{request.checkpoint}: {settled.start or 'image'} start, {settled.sampler.scheduler}"
        title += f", {request.steps} steps"
        processes.map(lambda _: finish(beside, output, recipes, columns=columns, title=title), [0])
    finally:
        if processes.is_main:
            shutil.rmtree(beside, ignore_errors=True)
    if processes.is_main:
        console.print(f"wrote {output / SHEET}", soft_wrap=True)
    close()
    return output / SHEET


def _draw(drawing: Any, recipes: list[dict[str, Any]], *, folder: Path, processes: Any) -> None:
    """Draws and writes this process's part of the pictures."""
    from rich.progress import Progress

    from .pictures import save_picture

    with Progress(transient=True, disable=not processes.is_main) as progress:
        bar = progress.add_task("drawing", total=len(recipes) * drawing.passes / processes.count)

        def draw(part: range) -> None:
            pictures = drawing.pictures(part, folder=folder, advance=lambda n: progress.advance(bar, n))
            for place, picture in enumerate(pictures, part[0] * drawing.request.count):
                save_picture(picture, folder, place, recipes[place])

        processes.map(draw, drawing.parts)


def check_offload(device: Any) -> None:
    """Raises ValueError where there is nothing to move idle models away from."""
    if device.type == "cpu":
        raise ValueError("--offload must be left out where there is no accelerator, got a CPU")
