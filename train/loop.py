"""The Accelerate loop: batches in, trained weights out, resumable at every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Subset

from ..configs.schema import Config
from ..pca import StartDistribution
from .checkpoint import checkpoints, load_average, save_checkpoint, step_of
from .metrics import LossMeter, append_metrics, rewind_metrics
from .models import prepare_unet, tokenize, training_schedule
from .prepare import Prepared
from .samples import TimestepLaw, TrainingSamples
from .step import StepLoss, training_loss


@dataclass
class Training:
    """What a training run holds in memory; `weights` are the trained parameters, `average` their EMA."""

    accelerator: Accelerator
    pipeline: StableDiffusionPipeline
    unet: torch.nn.Module
    weights: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Any
    average: EMAModel | None
    first_step: int = 0


def set_up(
    config: Config, pipeline: StableDiffusionPipeline, accelerator: Accelerator, *, run: Path
) -> Training:
    """Models, optimizer and averages on their devices, restored from the run's newest checkpoint, if any."""
    weights = prepare_unet(pipeline, config.model)
    pipeline.text_encoder.to(accelerator.device)
    options = config.train
    raw = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True)
    unet, optimizer = accelerator.prepare(pipeline.unet, raw)
    average = None
    if options.ema_decay:
        average = EMAModel(weights, decay=options.ema_decay, use_ema_warmup=True, power=0.75)
    saved, first_step = checkpoints(run), 0
    if saved:
        first_step = step_of(saved[-1])
        accelerator.load_state(str(saved[-1]))
        if average:
            load_average(average, saved[-1])
    if accelerator.is_main_process:
        rewind_metrics(run, first_step)
    # the schedule is a function of the step: nothing to save, nothing to load
    schedule = get_scheduler(
        options.schedule,
        raw,
        num_warmup_steps=options.warmup_steps,
        num_training_steps=options.steps,
        last_epoch=first_step - 1,
    )
    return Training(accelerator, pipeline, unet, weights, optimizer, schedule, average, first_step)


def batches(config: Config, training: Training, prepared: Prepared) -> DataLoader:
    """Every batch still to be trained on, in order; each process gets its share of each global batch."""
    options, accelerator = config.train, training.accelerator
    per_step = options.batch_size * accelerator.num_processes * options.gradient_accumulation
    (no_caption_ids,) = tokenize(training.pipeline, [""])
    samples = TrainingSamples(
        prepared.cache,
        prepared.train.class_ids,
        tokenize(training.pipeline, prepared.train.captions),
        no_caption_ids=no_caption_ids,
        total=per_step * options.steps,
        seed=config.run.seed,
        timesteps=TimestepLaw(
            training.pipeline.scheduler.config.num_train_timesteps,
            prepared.start_distribution.offset_from,
            config.start.emphasis,
        ),
        caption_dropout=options.caption_dropout,
        sample_posterior=options.sample_posterior,
    )
    remaining = Subset(samples, range(per_step * training.first_step, len(samples)))
    loader = DataLoader(remaining, batch_size=options.batch_size, num_workers=options.workers)
    return accelerator.prepare(loader)


def train(
    config: Config,
    training: Training,
    prepared: Prepared,
    *,
    run: Path,
    preview: Callable[[int], None] = lambda step: None,
) -> None:
    """Trains to config.train.steps, logging, checkpointing and previewing on the way.

    Raises ValueError when the loss is no longer finite; the last checkpoint is from before.
    """
    options, accelerator = config.train, training.accelerator
    start_distribution = prepared.start_distribution.to(accelerator.device)
    loss_of = _loss_function(training, start_distribution, min_snr_gamma=options.min_snr_gamma)
    meter = LossMeter(
        start_distribution.class_names, offset_from=start_distribution.offset_from, device=accelerator.device
    )
    step = training.first_step
    if step == 0:
        preview(0)
    with _progress(disable=not accelerator.is_main_process) as progress:
        bar = progress.add_task("training", total=options.steps, completed=step)
        for batch in batches(config, training, prepared):
            per_sample = _descend(batch, loss_of, training, max_grad_norm=options.max_grad_norm)
            meter.add(per_sample, batch["timesteps"], batch["class_ids"])
            if not accelerator.sync_gradients:
                continue
            step += 1
            log_due, checkpoint_due, preview_due = (
                step % every == 0 or step == options.steps
                for every in (options.log_every, options.checkpoint_every, options.preview_every)
            )
            if log_due or checkpoint_due:
                # a loss that is not finite stays in the meter's sums, so no bad state is ever saved
                means = meter.means(accelerator)
                check_finite(means["loss"], step, run)
                values = {"step": step, **means, "lr": training.schedule.get_last_lr()[0]}
                accelerator.log(values, step=step)
                if accelerator.is_main_process:
                    append_metrics(run, values)
                text = f"loss {means['loss']:.4f}  {means['images_per_second']:.0f} images/s"
                progress.update(bar, completed=step, description=text)
            if checkpoint_due:
                save_checkpoint(
                    accelerator, run, step, average=training.average, keep=options.keep_checkpoints
                )
            if preview_due:
                preview(step)
            if checkpoint_due or preview_due:
                meter.restart_clock()


def _loss_function(
    training: Training, start_distribution: StartDistribution, *, min_snr_gamma: float | None
) -> Callable[[Mapping[str, torch.Tensor]], StepLoss]:
    alphas_cumprod, prediction_type = training_schedule(training.pipeline)
    return partial(
        training_loss,
        unet=training.unet,
        text_encoder=training.pipeline.text_encoder,
        start_distribution=start_distribution,
        alphas_cumprod=alphas_cumprod.to(training.accelerator.device),
        offset_from=start_distribution.offset_from,
        prediction_type=prediction_type,
        min_snr_gamma=min_snr_gamma,
    )


def _descend(
    batch: Mapping[str, torch.Tensor],
    loss_of: Callable[[Mapping[str, torch.Tensor]], StepLoss],
    training: Training,
    *,
    max_grad_norm: float,
) -> torch.Tensor:
    """One batch forward and backward, with an optimizer step where accumulation is complete."""
    accelerator = training.accelerator
    with accelerator.accumulate(training.unet):
        loss, per_sample = loss_of(batch)
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(training.weights, max_grad_norm)
        training.optimizer.step()
        training.optimizer.zero_grad()
    if accelerator.sync_gradients:
        training.schedule.step()
        if training.average:
            training.average.step(training.weights)
    return per_sample


def check_finite(loss: float, step: int, run: Path) -> None:
    """Raises ValueError, naming the checkpoint that is still good, on a loss that is NaN or infinite."""
    if not math.isfinite(loss):
        saved = checkpoints(run)
        good = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        raise ValueError(
            f"loss must be finite, got {loss} by step {step}; {good}; try a lower train.learning_rate"
        )


def _progress(*, disable: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=disable)
