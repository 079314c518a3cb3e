"""onbrand fit: a start distribution for a checkpoint that was trained elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..configs import config_of
from .audit import condition_of, framing_of
from .console import best_device, quiet_console


def fit(catalogue: str, *, into: str, output: Path, overrides: list[str]) -> Path:
    """Writes the checkpoint with a start distribution to `output`, and its audits before and after.

    Raises ValueError when `output` exists, or anything is wrong with checkpoint or catalogue.
    """
    if output.exists():
        raise ValueError(f"output must be a new folder, got {output}, which exists")
    console = quiet_console()
    from ..data.table import catalogue_table
    from ..evaluation import compare_table
    from ..inference.load import load_pipeline
    from ..train.judge import audit_model, fix_limits, save_audit
    from ..train.models import resolve_base
    from ..train.prepare import latents_folder, offset_start, prepare, split_catalogue

    pipeline = load_pipeline(resolve_base(into)).to(best_device())
    # nothing is trained, so no timestep is trained from the start distribution: the offset range stays empty
    config = config_of(
        overrides,
        data={"source": catalogue, **framing_of(pipeline)},
        start={"enabled": False},
        model=condition_of(pipeline),
    )
    parts = split_catalogue(config)
    console.print(catalogue_table(*parts))
    prepared = prepare(
        config,
        pipeline,
        parts=parts,
        t_min=offset_start(pipeline, config.start),
        cache_dir=latents_folder(config.data, output),
        device=pipeline.device,
    )
    limits = fix_limits(prepared.train, pipeline.vae)
    pipeline.set_start_distribution(prepared.start_distribution)
    beside = output.with_name(f"{output.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    pipeline.save_pretrained(beside)
    reports = {}
    with console.status("audit: drawing pictures"):
        for name, start in (("from pure noise", "none"), ("from the class mean", "mean")):
            audited = audit_model(
                pipeline, prepared.held_out, limits=limits, start=start, settings=config.run.audit,
                seed=config.run.seed,
            )  # fmt: skip
            save_audit(audited, name=name, run=beside / "fit")
            reports[name] = audited.report
    beside.rename(output)
    console.print(compare_table(reports, title=f"On-brand audit of {into} against {catalogue}"))
    console.print(
        f"[bold]model[/]    {output}\n[bold]picture[/]  {output / 'fit/samples/from_the_class_mean.png'}",
        soft_wrap=True,
    )
    return output
