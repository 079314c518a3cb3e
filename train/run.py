"""A whole run: prepare, fit, train, export, audit. Every stage that is already done is left alone."""

from __future__ import annotations

import importlib.util
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from rich.console import Console
from rich.progress import Progress

from ..configs import ConfigError, differences
from ..configs.schema import Config
from ..data.catalogue import Catalogue
from ..data.latents import weights_hash
from ..data.table import catalogue_table
from ..evaluation import AuditReport, Limits, compare_table
from ..evaluation.rules import write_json
from ..inference.pipeline import load_pipeline
from ..pca import Sampler, build_scheduler
from .export import export_model
from .judge import (
    Audited,
    audit_file,
    audit_held_out,
    audit_model,
    fix_limits,
    save_audit,
    side_by_side,
    start_of,
)
from .loop import set_up, train
from .metrics import read_metrics
from .models import check_method, load_base
from .plan import plan_table
from .prepare import Prepared, latents_folder, offset_start, prepare, split_catalogue, transform_of
from .preview import save_preview, shipping_pipeline
from .report import write_report

CONFIG = "config.yaml"
HELD_OUT, BASE, NOISE, START = (
    "held-out catalogue",
    "base model",
    "from pure noise",
    "from start distribution",
)


def check_same_config(config: Config) -> None:
    """Raises ConfigError, listing what differs, if the run's folder was started with another config."""
    file = Path(config.run.dir) / CONFIG
    if file.exists() and (changed := differences(yaml.safe_load(file.read_text()), config.to_dict())):
        raise ConfigError(
            f"config must be the one that {file.parent} was started with, got differences:\n  "
            + "\n  ".join(changed)
        )


def start_run(config: Config) -> Path:
    """The run's folder, made with its config.yaml if it is new."""
    file = Path(config.run.dir) / CONFIG
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{CONFIG}.partial")
        beside.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
        beside.replace(file)
    return file.parent


def run_training(config: Config, *, console: Console, dry_run: bool = False) -> Path:
    """Runs what is left of a run and returns its folder; with dry_run only prints the plan.

    Raises ValueError on anything wrong with config, base or catalogue before a picture is encoded.
    """
    check_same_config(config)
    check_tracker(config.run.tracker)
    run = Path(config.run.dir)
    accelerator = Accelerator(
        mixed_precision=config.train.mixed_precision,
        gradient_accumulation_steps=config.train.gradient_accumulation,
        log_with=None if config.run.tracker == "none" else config.run.tracker,
        project_dir=config.run.dir,
        # the other processes wait while one encodes or exports
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )
    set_seed(config.run.seed)
    pipeline = load_base(config.model.base)
    check_method(pipeline, config.model)
    build_scheduler(pipeline.scheduler, Sampler(config.run.audit.scheduler, config.run.audit.steps))
    t_min = offset_start(pipeline, config.start)
    parts = split_catalogue(config)
    if accelerator.is_main_process:
        console.print(catalogue_table(*parts))
        console.print(
            plan_table(config, pipeline, parts[0], t_min=t_min, processes=accelerator.num_processes)
        )
    if dry_run:
        return run
    with accelerator.main_process_first():
        prepared = _prepare(config, pipeline, parts, accelerator, t_min=t_min)
    if not (run / "model").exists():
        _train_and_export(config, pipeline, prepared, accelerator, run=run)
    accelerator.free_memory()
    if accelerator.is_main_process:
        if not (run / "audit.json").exists():
            _judge(config, prepared, run=run, device=str(accelerator.device))
        names = (HELD_OUT, BASE, NOISE, START)
        console.print(compare_table({name: AuditReport.load(audit_file(name, run)) for name in names}))
        console.print(
            f"[bold]model[/]    {run / 'model'}\n[bold]report[/]   {run / 'report.html'}", soft_wrap=True
        )
        console.print(f"[bold]picture[/]  {run / 'before_and_after.png'}", soft_wrap=True)
    accelerator.end_training()
    return run


def check_tracker(tracker: str) -> None:
    """Raises ValueError on a tracker that is not installed: accelerate would leave it out silently."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise ValueError(f"run.tracker must be an installed library, got {tracker!r}: pip install {tracker}")


def _prepare(
    config: Config, pipeline: Any, parts: tuple[Catalogue, Catalogue], accelerator: Accelerator, *, t_min: int
) -> Prepared:
    """Latents, start distribution and audit limits, with the run's folder made or checked to be theirs."""
    prepared = prepare(
        config,
        pipeline,
        parts=parts,
        t_min=t_min,
        cache_dir=latents_folder(config.data, Path(config.run.dir)),
        device=str(accelerator.device),
    )
    options = config.train
    inputs = {
        "catalogue": prepared.cache.content_hash,
        "base": weights_hash(pipeline.unet),
        "global batch": options.batch_size * options.gradient_accumulation * accelerator.num_processes,
    }
    run = start_run(config)
    file = run / "inputs.json"
    if file.exists() and (changed := differences(json.loads(file.read_text()), inputs)):
        raise ConfigError(f"{run} must go on with what it was started with, got " + "; ".join(changed))
    if accelerator.is_main_process and not file.exists():
        prepared.start_distribution.save_pretrained(run / "start_distribution")
        fix_limits(prepared.train, prepared.cache, pipeline.vae).save(run / "limits.json")
        write_json(inputs, file)
    return prepared


def _train_and_export(
    config: Config, pipeline: Any, prepared: Prepared, accelerator: Accelerator, *, run: Path
) -> None:
    if config.run.tracker != "none":
        options = {"wandb": {"mode": os.environ.get("WANDB_MODE", "offline"), "dir": str(run)}}
        accelerator.init_trackers("onbrand", config=_flat(config.to_dict()), init_kwargs=options)
    training = set_up(config, pipeline, accelerator, run=run)

    def preview(step: int) -> None:
        save_preview(
            training,
            prepared.start_distribution,
            prepared.train,
            step=step,
            run=run,
            settings=config.run.audit,
        )

    train(config, training, prepared, run=run, preview=preview)
    if accelerator.is_main_process:
        export_model(training, prepared.start_distribution, run=run, prompt=prepared.train.captions[0])
    accelerator.wait_for_everyone()


def _judge(config: Config, prepared: Prepared, *, run: Path, device: str) -> None:
    """Audits held-out pictures, the base, and the shipped model from pure noise and from its start."""
    settings, limits = config.run.audit, Limits.load(run / "limits.json")
    model = load_pipeline(run / "model").to(device)
    start = start_of(model.start_distribution)
    base = shipping_pipeline(load_base(config.model.base), model.start_distribution).to(device)
    audits: dict[str, Audited] = {
        HELD_OUT: audit_held_out(
            prepared.held_out,
            model.vae,
            limits=limits,
            transform=transform_of(config.data),
            cache_dir=latents_folder(config.data, Path(config.run.dir)),
        )
    }
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("audit: drawing pictures", total=3 * settings.pictures)
        for name, pipeline, how in ((BASE, base, "none"), (NOISE, model, "none"), (START, model, start)):
            audits[name] = audit_model(
                pipeline,
                prepared.held_out,
                limits=limits,
                start=how,
                settings=settings,
                seed=config.run.seed,
                advance=lambda count: progress.advance(bar, count),
            )
    for name, audited in audits.items():
        save_audit(audited, name=name, run=run)
    rows = {name: audited.pictures for name, audited in audits.items() if name != HELD_OUT}
    side_by_side(rows).save(run / "before_and_after.png")
    write_report(config, audits, prepared, metrics=read_metrics(run), run=run)
    audits[START].report.save(run / "audit.json")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config values as the flat, plain ones that trackers take."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
