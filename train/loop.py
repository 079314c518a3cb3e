"""The Accelerate loop: batches in, trained weights out, resumable at every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Subset

from ..configs.schema import Config
from ..pca import StartDistribution
from .checkpoint import checkpoints, save_checkpoint
from .metrics import LossMeter, append_metrics, held_out_losses
from .models import training_schedule
from .order import class_draws, training_order
from .prepare import Prepared
from .preview import preview_file
from .samples import Texts, TimestepLaw, TrainingSamples
from .step import StepLoss, training_loss
from .stop import Stopped, StopRequest, leave_signals_to_the_main_process
from .training import Training

LossOf = Callable[[Mapping[str, torch.Tensor]], StepLoss]


def batches(config: Config, training: Training, prepared: Prepared, texts: Texts) -> DataLoader:
    """Every batch still to be trained on, in order; each process gets its share of each global batch."""
    options, accelerator = config.train, training.accelerator
    per_step = options.batch_size * accelerator.num_processes * options.gradient_accumulation
    part, start_distribution = prepared.train, prepared.start_distribution
    class_ids = part.catalogue.class_ids
    draws = class_draws(
        class_ids,
        part.catalogue.class_names,
        sampling=config.data.sampling,
        weights=config.data.class_weights,
    )
    order = training_order(
        class_ids,
        part.buckets.bucket_ids,
        draws=draws,
        seed=config.run.seed,
        steps=options.steps,
        per_step=per_step,
    )
    samples = TrainingSamples(
        part.cache,
        class_ids,
        texts,
        order=order,
        seed=config.run.seed,
        timesteps=TimestepLaw(
            start_distribution.config["num_train_timesteps"],
            start_distribution.offset_from,
            config.start.emphasis,
        ),
        caption_dropout=options.caption_dropout,
        sample_posterior=options.sample_posterior,
        condition=part.condition,
        text_embeds=part.text_embeds,
    )
    remaining = Subset(samples, range(per_step * training.first_step, len(samples)))
    return accelerator.prepare(
        DataLoader(
            remaining,
            batch_size=options.batch_size,
            num_workers=options.workers,
            worker_init_fn=leave_signals_to_the_main_process,
            # its own, so that a resumed run leaves the restored random state as it is
            generator=torch.Generator(),
            pin_memory=accelerator.device.type == "cuda",
        )
    )


def loss_function(
    denoiser: torch.nn.Module,
    pipeline: Any,
    start_distribution: StartDistribution,
    *,
    device: torch.device,
    min_snr_gamma: float | None = None,
) -> LossOf:
    """The loss of a batch under a denoiser, the pipeline's schedule and a start distribution."""
    alphas_cumprod, prediction_type = training_schedule(pipeline)
    return partial(
        training_loss,
        denoiser=denoiser,
        start_distribution=start_distribution.to(device),
        alphas_cumprod=alphas_cumprod.to(device),
        offset_from=start_distribution.offset_from,
        prediction_type=prediction_type,
        min_snr_gamma=min_snr_gamma,
    )


def train(
    config: Config,
    training: Training,
    prepared: Prepared,
    texts: Texts,
    *,
    run: Path,
    preview: Callable[[int], None] = lambda step: None,
    validate: Callable[[], dict[str, float]] = dict,
) -> None:
    """Trains to config.train.steps; logs, validates, saves and previews on the way.

    Raises ValueError when the loss is no longer finite or explodes; the last checkpoint is from before.
    Raises Stopped after a signal, once the state is saved.
    """
    options, accelerator = config.train, training.accelerator
    loss_of = loss_function(
        training.denoiser,
        training.networks.pipeline,
        prepared.start_distribution,
        device=accelerator.device,
        min_snr_gamma=options.min_snr_gamma,
    )
    meter = LossMeter(
        prepared.start_distribution.class_names,
        offset_from=prepared.start_distribution.offset_from,
        device=accelerator.device,
    )

    def due(every: int) -> bool:
        return step % every == 0 or step == options.steps

    step = training.first_step
    if due(options.preview_every) and not preview_file(run, step).exists():
        preview(step)  # the first, or one that a killed run saved before and did not draw
        meter.restart_clock()
    with _progress(disable=not accelerator.is_main_process) as progress, StopRequest() as stop:
        bar = progress.add_task("training", total=options.steps, completed=training.first_step)
        for step in _steps(config, training, batches(config, training, prepared, texts), loss_of, meter):
            save = due(options.checkpoint_every)
            log = due(options.log_every) or save or due(options.validate_every)
            signum = stop.seen(accelerator, ask_others=log)
            save |= bool(signum)
            if log or save:
                values = _measured(step, training, meter, run=run, limit=options.max_loss)
                if due(options.validate_every):
                    values |= validate()
                _log(values, accelerator, run)
                progress.update(bar, completed=step, description=_description(values))
            if save:
                saved = _save(step, training, run=run, keep=options.keep_checkpoints)
            if signum:
                raise Stopped(step, saved, signum)
            if due(options.preview_every):
                preview(step)
            if save or due(options.preview_every) or due(options.validate_every):
                meter.restart_clock()
        if signum := stop.seen(accelerator, ask_others=True):
            raise Stopped(step, checkpoints(run)[-1], signum)


def _measured(
    step: int, training: Training, meter: LossMeter, *, run: Path, limit: float
) -> dict[str, float]:
    """What a log line says of the steps since the last one. Raises ValueError as `check_loss` does.

    A loss that is not finite stays in the meter's sums, so no bad state is ever saved.
    """
    values = {"step": step, **meter.means(training.accelerator)}
    check_loss(values, run, limit=limit)
    return values | {"lr": training.schedule.get_last_lr()[0]}


def _log(values: Mapping[str, float], accelerator: Accelerator, run: Path) -> None:
    accelerator.log(dict(values), step=int(values["step"]))
    if accelerator.is_main_process:
        append_metrics(run, dict(values))


def _save(step: int, training: Training, *, run: Path, keep: int) -> Path:
    return save_checkpoint(
        training.accelerator,
        run,
        step,
        average=training.averaged_weights(),
        average_steps=training.average.optimization_step if training.average else 0,
        keep=keep,
        held_out=held_out_losses(run),
    )


def _steps(
    config: Config, training: Training, loader: DataLoader, loss_of: LossOf, meter: LossMeter
) -> Iterator[int]:
    """Takes one optimizer step after the other and yields its number."""
    step = training.first_step
    for batch in loader:
        per_sample = _descend(batch, loss_of, training, meter, max_grad_norm=config.train.max_grad_norm)
        meter.add(per_sample, batch["timesteps"], batch["class_ids"])
        if training.accelerator.sync_gradients:
            step += 1
            yield step


def _descend(
    batch: Mapping[str, torch.Tensor],
    loss_of: LossOf,
    training: Training,
    meter: LossMeter,
    *,
    max_grad_norm: float,
) -> torch.Tensor:
    """One batch forward and backward, with an optimizer step where accumulation is complete."""
    accelerator = training.accelerator
    with accelerator.accumulate(training.denoiser):
        loss, per_sample = loss_of(batch)
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(list(training.weights.values()), max_grad_norm)
            meter.add_norm(norm, may_overflow=accelerator.scaler is not None)
        training.optimizer.step()
        training.optimizer.zero_grad()
    if accelerator.sync_gradients:
        training.schedule.step()
        training.update_average()
    return per_sample


def check_loss(values: Mapping[str, float], run: Path, *, limit: float) -> None:
    """Raises ValueError, naming the checkpoint that is still good, on a loss or gradient that is NaN or
    infinite and on a mean loss above the limit."""
    loss, norm = values["loss"], values.get("grad_norm") or 0.0
    if math.isfinite(loss) and loss <= limit and math.isfinite(norm):
        return
    saved = checkpoints(run)
    good = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
    rule = f"at most {limit:g} (train.max_loss)" if math.isfinite(loss) and loss > limit else "finite"
    what, got = ("loss", loss) if rule != "finite" or not math.isfinite(loss) else ("gradient norm", norm)
    raise ValueError(
        f"{what} must be {rule}, got {got:.4g} by step {values['step']}; {good}; "
        "try a lower train.learning_rate in a new run.dir"
    )


def _description(values: Mapping[str, float]) -> str:
    parts = [f"loss {values['loss']:.4f}", f"{values['images_per_second']:.1f} images/s"]
    if "held_out_loss" in values:
        parts.insert(1, f"held out {values['held_out_loss']:.4f}")
    return "  ".join([*parts, f"{values['memory_gib']:.1f} GiB"])


def _progress(*, disable: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=disable)
