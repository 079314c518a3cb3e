"""onbrand sample: prompts to PNGs."""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .console import notes_once, quiet_console, quiet_log
from .launched import start_processes
from .request import Request, open_picture


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
    together: Callable[[int], list[Any]] | None = None
    others: list[dict[str, Any]] = []
    if request.aggregate:
        from .aggregated import aggregate_of

        with quiet_log():
            together, others = aggregate_of(
                request, settled, pipeline, device=device, condition=_condition(request)
            )
    recipes = recipes_of(request, settled, pipeline, weights=weights, others=others, device=device.type)
    free = next_folder("samples", recipes) if output is None and processes.is_main else output
    output = Path(processes.gather([str(free.absolute()) if free else ""])[0])
    check_output(output, recipes)
    if request.layout is not None:
        from .coupled import check_layout

        check_layout(request, settled, pipeline)
    call = _call(request, settled, pipeline, device=device)
    beside = Path(processes.gather([str(new_folder_beside(output)) if processes.is_main else ""])[0])
    try:
        with notes_once(console.print if processes.is_main else None):
            _draw(
                request, settled, pipeline, call, recipes, folder=beside, processes=processes,
                together=together,
            )  # fmt: skip
            if trace:
                processes.map(lambda _: _trace(request, settled, pipeline, call, folder=beside), [0])
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


def _call(request: Request, settled: Any, pipeline: Any, *, device: Any) -> dict[str, Any]:
    """What `generate` and `trace` are both told."""
    call: dict[str, Any] = {
        "sampler": settled.sampler,
        "scheduler_config": settled.sampler_config,
        "guidance_scale": request.guidance,
        "height": settled.size[0],
        "width": settled.size[1],
    }
    if request.start_image is not None:
        # encoded here, once: an offloaded VAE moves to the accelerator only while it is called whole
        pipeline.vae.to(device)
        picture = open_picture("--start-image", request.start_image)
        call["x_start"] = pipeline._encode(picture, height=settled.size[0], width=settled.size[1])
        call["project_start"] = request.project
    return call


def _draw(
    request: Request,
    settled: Any,
    pipeline: Any,
    call: dict[str, Any],
    recipes: list[dict[str, Any]],
    *,
    folder: Path,
    processes: Any,
    together: Callable[[int], list[Any]] | None = None,
) -> None:
    """Draws and writes this process's part of the pictures."""
    from rich.progress import Progress

    from ..inference.generate import batch_of, generate, share_galleries
    from .coupled import initializer_of
    from .pictures import save_picture

    galleries, count = request.galleries, request.count
    batch_size = batch_of(pipeline, height=settled.size[0], width=settled.size[1])
    parts = share_galleries([gallery.negative is None for gallery in galleries], count, batch_size)
    condition, noise = _condition(request), initializer_of(request, size=settled.latent_size(pipeline))
    gathered = itertools.chain.from_iterable

    def plain(part: Sequence[int], *, advance: Callable[[int], None], **more: Any) -> list[Any]:
        return generate(
            pipeline,
            [galleries[i].prompt for i in part],
            count=count,
            class_names=[settled.classes[i] for i in part] if pipeline.start_distribution else None,
            negative_prompts=[galleries[i].negative for i in part],
            images=None if condition is None else [condition] * len(part),
            start=settled.start or "mean",
            seeds=[galleries[i].seed for i in part],
            noise=noise,
            batch_size=batch_size,
            advance=advance,
            **call,
            **more,
        )

    def laid_out(place: int) -> list[Any]:
        """A gallery whose layout is followed; of the first it is drawn what was looked at."""
        from .placed import draw_laid_out

        advance = functools.partial(progress.advance, bar)
        return draw_laid_out(
            request,
            pipeline,
            functools.partial(plain, [place], advance=advance),
            prompt=galleries[place].prompt,
            folder=folder if place == 0 else None,
        )

    def advanced(pictures: list[Any]) -> list[Any]:
        progress.advance(bar, len(pictures))
        return pictures

    def draw(part: range) -> None:
        advance = functools.partial(progress.advance, bar)
        pictures: Iterable[Any]
        if request.background_of is not None:
            pictures = gathered(
                _scenes(request, settled, pipeline, request.background_of, i, advance=advance).pictures
                for i in part
            )
        elif together is not None:
            pictures = gathered(advanced(together(i)) for i in part)
        elif request.layout is not None:
            pictures = gathered(laid_out(i) for i in part)
        else:
            pictures = plain(part, advance=advance)
        for place, picture in enumerate(pictures, part[0] * count):
            save_picture(picture, folder, place, recipes[place])

    with Progress(transient=True, disable=not processes.is_main) as progress:
        passes = 1 if request.background_of is None else request.refining_steps + 1
        bar = progress.add_task("drawing", total=len(recipes) * passes / processes.count)
        processes.map(draw, parts)


def _scenes(
    request: Request,
    settled: Any,
    pipeline: Any,
    file: Path,
    place: int,
    *,
    advance: Callable[[int], None],
) -> Any:
    """The object of a picture before new backgrounds, as the gallery at this place asks for."""
    from ..inference.backgrounds import scenes
    from .coupled import initializer_of

    gallery, how = request.galleries[place], {}
    if pipeline.start_distribution is not None:
        how = {"class_name": settled.classes[place], "start": settled.start}
    return scenes(
        pipeline,
        open_picture("--background-of", file),
        request.mask,
        prompt=gallery.prompt,
        images=request.count,
        optimisation_steps=request.refining_steps,
        coupling=initializer_of(request),
        sampler=settled.sampler,
        seed=gallery.seed,
        height=settled.size[0],
        width=settled.size[1],
        advance=advance,
        **how,
    )


def _trace(request: Request, settled: Any, pipeline: Any, call: dict[str, Any], *, folder: Path) -> None:
    """Writes the first picture's way from pure noise and, where it has a start, from that."""
    from ..inference.trace import trace
    from ..inference.trace_sheet import trace_sheet
    from .pictures import TRACE

    first = request.galleries[0]
    follow = functools.partial(trace, pipeline, first.prompt, seed=first.seed)
    if first.negative is not None:
        call = call | {"negative_prompt": first.negative}
    if request.condition is not None:
        call = call | {"image": _condition(request)}
    from_noise = {key: value for key, value in call.items() if key not in ("x_start", "project_start")}
    traces = {"from pure noise": follow(**from_noise, start="none")}
    if "x_start" in call:
        traces["from its start"] = follow(**call, class_name=settled.classes[0])
    elif pipeline.start_distribution is not None:
        start = settled.start if settled.start != "none" else pipeline.start_distribution.default_start
        traces["from its start"] = follow(**call, start=start, class_name=settled.classes[0])
    title = f"{first.prompt} (seed {first.seed}, {settled.sampler.scheduler}, guidance {request.guidance:g})"
    trace_sheet(pipeline, traces, title=title).save(folder / TRACE)


def _condition(request: Request) -> Any:
    if request.condition is None:
        return None
    return open_picture("--condition", request.condition).convert("RGB")


def check_offload(device: Any) -> None:
    """Raises ValueError where there is nothing to move idle models away from."""
    if device.type == "cpu":
        raise ValueError("--offload must be left out where there is no accelerator, got a CPU")
