"""The four audits of a finished run, and its report."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import Progress

from ..evaluation import AuditReport, Limits, compare_table
from ..evaluation.audit_page import write_audit_page
from ..inference.load import load_pipeline, to_draw
from .judge import Audited, audit_file, audit_held_out, audit_model, fix_limits, save_audit, side_by_side
from .metrics import read_metrics
from .models import load_base
from .prepare import Prepared
from .preview import shipping_pipeline
from .report import write_report
from .stage import Stage

HELD_OUT, BASE, NOISE, START = (
    "held-out catalogue",
    "base model",
    "from pure noise",
    "from start distribution",
)


def audit_run(stage: Stage, prepared: Prepared) -> None:
    """Audits held-out pictures, the base, and the shipped model from pure noise and from its start.

    The processes share the drawing; the main one writes.
    """
    config, run, processes = stage.config, stage.run, stage.processes
    settings, limits = config.run.audit, limits_of(stage, prepared)

    def drawn(pipeline: Any, how: str) -> Audited:
        pipeline.safety_checker = None  # a picture it blackens says nothing about the brand
        return audit_model(
            to_draw(pipeline, stage.accelerator.device),
            prepared.held_out,
            limits=limits,
            start=how,
            settings=settings,
            seed=config.run.seed,
            processes=processes,
            advance=lambda count: progress.advance(bar, count * processes.count),
        )

    audits: dict[str, Audited] = {}
    with Progress(console=Console(stderr=True), transient=True, disable=not processes.is_main) as progress:
        bar = progress.add_task("audit: drawing pictures", total=3 * settings.pictures)
        # one after the other: two whole models need not fit on the GPU
        audits[BASE] = drawn(shipping_pipeline(load_base(config.model), prepared.start_distribution), "none")
        model = load_pipeline(run / "model")
        audits[NOISE] = drawn(model, "none")
        audits[START] = drawn(model, model.start_distribution.default_start)
    held_out = audit_held_out(prepared.held_out, model.vae, limits=limits, processes=processes)
    audits = {HELD_OUT: held_out, **audits}
    if processes.is_main:
        for name, audited in audits.items():
            save_audit(audited, name=name, run=run)
        rows = {name: audited.pictures for name, audited in audits.items() if name != HELD_OUT}
        side_by_side(rows).save(run / "before_and_after.png")
        page = write_audit_page(
            audit_file(START, run).with_suffix(".html"),
            report=audits[START].report,
            pictures=audits[START].pictures,
            title=f"{run.name}, {START}",
            reference_pictures=held_out.pictures,
            captions=audits[START].prompts,
        )
        write_report(config, audits, prepared, metrics=read_metrics(run), run=run, audit_page=page)
        audits[START].report.save(run / "audit.json")
    processes.wait()


def limits_of(stage: Stage, prepared: Prepared) -> Limits:
    """The limits fixed before the training; set anew, from the same pictures, where their file was deleted.

    Raises ValueError, which says so, on limits of other rules than this version's.
    """
    file = stage.run / "limits.json"
    if file.exists():
        return Limits.load(file)
    vae = load_base(stage.config.model).vae.to(stage.accelerator.device)
    limits = fix_limits(prepared.train, vae, processes=stage.processes)
    if stage.processes.is_main:
        limits.save(file)
    return limits


def say_result(stage: Stage) -> None:
    """Prints the audits of a finished run side by side, and where its files are."""
    run, names = stage.run, (HELD_OUT, BASE, NOISE, START)
    if stage.processes.is_main:
        stage.say(compare_table({name: AuditReport.load(audit_file(name, run)) for name in names}))
    stage.say(f"[bold]model[/]    {run / 'model'}\n[bold]report[/]   {run / 'report.html'}", soft_wrap=True)
    stage.say(f"[bold]picture[/]  {run / 'before_and_after.png'}", soft_wrap=True)
