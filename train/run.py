"""A whole run: prepare, fit, train, export, audit. Every stage that is already done is left alone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from rich.console import Console

from ..configs.schema import Config
from ..data.catalogue import Catalogue
from ..data.latents import encode_latents, weights_hash
from ..data.processes import Processes
from ..data.table import catalogue_table
from ..evaluation import contact_sheet
from ..evaluation.rules import write_json
from ..inference.text import text_encoders
from ..inference.vae import pictures_of
from ..pca import Sampler, build_scheduler
from ..whole_file import whole
from .audits import audit_run, say_result
from .card import write_run_card
from .draw import round_robin
from .export import export_model
from .judge import fix_limits
from .launch import frozen_dtype, processes_of, start_accelerator
from .loop import train
from .models import Networks, check_method, load_base, prepare_networks, training_schedule
from .optimizers import check_optimizer
from .part import Part, size_of, transform_of
from .plan import plan_table, start_warning
from .prepare import Prepared, buckets_of, check_class_sizes, latents_folder, prepare, split_catalogue
from .preview import save_picture, save_preview
from .stage import INPUTS, Stage, check_same_config, check_same_inputs, hold, recorded, start_run
from .start import check_band, offset_start
from .stop import Stopped
from .text_cache import embeddings_size, should_cache, texts_of
from .training import move, set_up
from .validation import fixed_validation

DRY_RUN_PICTURES = 16


def run_training(config: Config, *, console: Console, dry_run: bool = False) -> Path:
    """Runs what is left of a run and returns its folder; with dry_run prints the plan and trains nothing.

    Raises ValueError on anything wrong with config, base or catalogue before a picture is encoded.
    """
    check_same_config(config)
    check_tracker(config.run.tracker)
    check_optimizer(config.train.optimizer)
    run = Path(config.run.dir)
    accelerator = start_accelerator(config)
    stage = Stage(config, run, accelerator, processes_of(accelerator), console)
    set_seed(config.run.seed)
    pipeline = load_base(config.model)
    check_method(pipeline, config.model)
    build_scheduler(pipeline.scheduler, Sampler(config.run.audit.scheduler, config.run.audit.steps))
    t_min = offset_start(pipeline, config.start)
    base_hash = [weights_hash(network) for network in (pipeline.unet, *text_encoders(pipeline))]
    networks = prepare_networks(pipeline, config.model, weight_dtype=frozen_dtype(accelerator))
    parts = split_catalogue(config, processes=stage.processes)
    cached_text = _announce(stage, networks, parts, t_min=t_min)
    if dry_run:
        _show_first_pictures(stage, pipeline, parts[0])
        return run
    with hold(run) if stage.processes.is_main else nullcontext():
        prepared = _prepare(stage, networks, parts, t_min=t_min, base_hash=base_hash, cached_text=cached_text)
        _go_on(stage, networks, prepared, cached_text=cached_text)
    return run


def check_tracker(tracker: str) -> None:
    """Raises ValueError on a tracker that is not installed: accelerate would leave it out silently."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise ValueError(f"run.tracker must be an installed library, got {tracker!r}: pip install {tracker}")


def _announce(stage: Stage, networks: Networks, parts: tuple[Catalogue, Catalogue], *, t_min: int) -> bool:
    """Checks what can be checked before anything is encoded, prints the plan; whether text is cached."""
    config, (catalogue, _) = stage.config, parts
    buckets = buckets_of(catalogue, config.data)
    check_class_sizes(catalogue, buckets, config.start.components)
    check_band(config.start, networks.pipeline.vae, buckets.sizes)
    dtype = frozen_dtype(stage.accelerator)
    fits = should_cache(
        config.train.cache_text,
        frozen=config.model.text_encoder == "frozen",
        size=embeddings_size(networks.pipeline, catalogue.captions, dtype=dtype),
        cache_dir=latents_folder(config.data, stage.run),
    )
    cached_text = stage.processes.gather([recorded(stage.run, "cached text", fits)])[0]  # disks differ
    stage.say(catalogue_table(*parts))
    stage.say(
        plan_table(
            config,
            networks,
            catalogue,
            buckets,
            t_min=t_min,
            processes=stage.processes.count,
            dtype=dtype,
            cached_text=cached_text,
        )
    )
    alphas_cumprod, _ = training_schedule(networks.pipeline)
    if warning := start_warning(alphas_cumprod, offset_from=t_min):
        stage.say(f"[yellow]warning: {warning}[/]")
    return cached_text


def _show_first_pictures(stage: Stage, pipeline: Any, catalogue: Catalogue) -> None:
    """The first training pictures as the model will see them, after the VAE, written beside the run."""
    if not stage.processes.is_main:
        return
    rows, config = round_robin(catalogue, DRY_RUN_PICTURES), stage.config.data
    buckets, vae = buckets_of(catalogue, config), pipeline.vae.to(stage.accelerator.device)
    pictures = []
    for row in rows:
        pixels = transform_of(config, size_of(buckets, row))(catalogue.image(row))
        pictures += pictures_of(vae, encode_latents(pixels[None], vae)[0])
    file = stage.run.with_name(f"{stage.run.name}_dry_run.png")
    captions = [catalogue.captions[row] for row in rows]
    save_picture(contact_sheet(pictures, captions=captions, title="as training will see them"), file)
    stage.say(f"[bold]picture[/]  {file}", soft_wrap=True)


def _prepare(
    stage: Stage,
    networks: Networks,
    parts: tuple[Catalogue, Catalogue],
    *,
    t_min: int,
    base_hash: list[str],
    cached_text: bool,
) -> Prepared:
    """Latents, start distribution and audit limits, with the run's folder made or checked to be theirs."""
    config, run, processes = stage.config, stage.run, stage.processes
    prepared = prepare(
        config,
        networks.pipeline,
        parts=parts,
        t_min=t_min,
        cache_dir=latents_folder(config.data, run),
        device=str(stage.accelerator.device),
        processes=processes,
    )
    options, part = config.train, prepared.train
    inputs = {
        **_contents(part, processes),
        "held out": _contents(prepared.held_out, processes),
        "cached text": cached_text,
        "base": base_hash,
        "global batch": options.batch_size * options.gradient_accumulation * processes.count,
    }
    is_known = check_same_inputs(run, inputs)
    processes.wait()  # all have looked before one writes
    if processes.is_main:
        start_run(config)
    if not is_known:
        vae = networks.pipeline.vae.to(stage.accelerator.device)
        limits = fix_limits(part, vae, processes=processes)
        if processes.is_main:
            with whole(run / "start_distribution") as beside:
                prepared.start_distribution.save_pretrained(beside)
            limits.save(run / "limits.json")
            write_json(inputs, run / INPUTS)
    processes.wait()
    return prepared


def _contents(part: Part, processes: Processes) -> dict[str, str]:
    """Hashes of what a part of the catalogue holds."""
    told = json.dumps([part.catalogue.captions, part.catalogue.class_ids.tolist()])
    return {
        "pictures": part.cache.content_hash,
        "conditions": _hash_conditions(part, processes),
        "captions and classes": hashlib.sha256(told.encode()).hexdigest(),
    }


def _hash_conditions(part: Part, processes: Processes) -> str:
    """sha256 over the columns of condition pictures or masks, "" without any."""
    conditions = part.condition
    if conditions is None or conditions.kind == "segment":
        return ""

    def digest(row: int) -> str:
        return hashlib.sha256(conditions.given(row).tobytes()).hexdigest()

    return hashlib.sha256("".join(processes.map(digest, range(len(part)))).encode()).hexdigest()


def _go_on(stage: Stage, networks: Networks, prepared: Prepared, *, cached_text: bool) -> None:
    """Trains, exports, audits and writes the card, each if it has not been done."""
    config, run, accelerator, pipeline = stage.config, stage.run, stage.accelerator, networks.pipeline
    weights = None
    if not (run / "model").exists():
        try:
            weights = _train(stage, networks, prepared, cached_text=cached_text)
        except Stopped as stopped:
            stage.say(f"[yellow]{stopped}[/]", soft_wrap=True)
            raise
    accelerator.free_memory()  # what draws from here on are other networks
    pipeline.to("cpu")
    if networks.controlnet is not None:
        networks.controlnet.to("cpu")
    if weights is not None:
        _export(stage, weights, prepared)
    if not (run / "audit.json").exists():
        audit_run(stage, prepared)
    if stage.processes.is_main and not (run / "model" / "README.md").exists():
        factor = pipeline.vae_scale_factor
        start = prepared.start_distribution
        write_run_card(config, start, vae_scale_factor=factor, run=run, folder=run / "model")
    say_result(stage)
    accelerator.end_training()


def _train(
    stage: Stage, networks: Networks, prepared: Prepared, *, cached_text: bool
) -> dict[str, torch.Tensor]:
    """The trained weights as they ship, gathered from all processes on the CPU."""
    config, run, accelerator = stage.config, stage.run, stage.accelerator
    _start_tracker(stage)
    move(networks, accelerator.device)
    texts, held_out_texts = (
        texts_of(
            networks.pipeline,
            part.catalogue.captions,
            cached=cached_text,
            cache_dir=latents_folder(config.data, run),
            processes=stage.processes,
        )
        for part in (prepared.train, prepared.held_out)
    )
    networks.idle = [networks.pipeline.vae, *(text_encoders(networks.pipeline) if cached_text else [])]
    training = set_up(
        config, networks, accelerator, run=run, warn=lambda text: stage.say(f"[yellow]warning: {text}[/]")
    )
    start_distribution = prepared.start_distribution
    validation = fixed_validation(
        prepared.held_out,
        held_out_texts,
        start_distribution=start_distribution,
        pictures=config.train.validation_pictures,
        batch_size=config.train.batch_size,
    )

    def preview(step: int) -> None:
        save_preview(
            training,
            prepared.train,
            start_distribution,
            step=step,
            run=run,
            settings=config.run.audit,
            processes=stage.processes,
        )

    def validate() -> dict[str, float]:
        return validation.losses(training, start_distribution)

    train(config, training, prepared, texts, run=run, preview=preview, validate=validate)
    return training.shipped_weights()


def _start_tracker(stage: Stage) -> None:
    if stage.config.run.tracker != "none":
        options = {"wandb": {"mode": os.environ.get("WANDB_MODE", "offline"), "dir": str(stage.run)}}
        settings = _flat(stage.config.to_dict())
        stage.accelerator.init_trackers("onbrand", config=settings, init_kwargs=options)


def _export(stage: Stage, weights: dict[str, torch.Tensor], prepared: Prepared) -> None:
    """The main process writes the model."""
    part = prepared.train
    if stage.processes.is_main:
        export_model(
            stage.config.model,
            weights,
            prepared.start_distribution.to("cpu"),
            run=stage.run,
            prompt=part.catalogue.captions[0],
            condition=part.condition.image(0) if part.condition else None,
            device=stage.accelerator.device,
        )
    stage.processes.wait()


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config values as the flat, plain ones that trackers take."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
