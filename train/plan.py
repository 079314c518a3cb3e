"""What a run is about to do, as a table."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ..configs.schema import Config
from ..data.catalogue import Catalogue
from ..pca import build_scheduler, first_timestep
from .prepare import samplers_of


def plan_table(config: Config, pipeline: Any, catalogue: Catalogue, *, t_min: int, processes: int) -> Table:
    """Steps, batch, what is trained, the offset range and the samplers that set it."""
    options = config.train
    total = pipeline.scheduler.config.num_train_timesteps
    per_step = options.batch_size * processes * options.gradient_accumulation
    factors = f"{options.batch_size} x {processes} process(es) x {options.gradient_accumulation} accumulation"
    parameters = sum(p.numel() for p in pipeline.unet.parameters()) / 1e6
    method = "all weights" if config.model.method == "full" else f"LoRA, rank {config.model.lora.rank}"
    table = Table(title="Plan", show_header=False)
    table.add_row("base", f"{config.model.base}: UNet with {parameters:.1f} M parameters, {method}")
    table.add_row("global batch", f"{factors} = {per_step}")
    passes = options.steps * per_step / len(catalogue)
    table.add_row("steps", f"{options.steps}, {passes:.1f} passes over {len(catalogue)} pictures")
    table.add_row(
        "start distribution", f"K = {config.start.components}, {len(catalogue.class_names)} class(es)"
    )
    table.add_row("offset range", _range_text(config, t_min, total))
    for sampler in samplers_of(config.start):
        first = first_timestep(build_scheduler(pipeline.scheduler, sampler), sampler.steps)
        table.add_row("", f"{sampler.scheduler}, {sampler.steps} steps: first timestep {first}")
    return table


def _range_text(config: Config, offset_from: int, total: int) -> str:
    if offset_from >= total:
        return "empty: plain fine-tuning"
    share = (total - offset_from) / total
    drawn = config.start.emphasis if config.start.emphasis is not None else share
    return f"t >= {offset_from} of {total}: {share:.1%} of timesteps, drawn {drawn:.1%} of the time"
