"""What a run is about to do, as a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table

from ..configs.schema import Config, ModelConfig
from ..data.buckets import Buckets
from ..data.catalogue import Catalogue
from ..pca import build_scheduler, first_timestep
from .models import Networks
from .order import class_draws
from .start import samplers_of
from .text_cache import embeddings_size

TRAINED = {
    "full": "all weights",
    "attention": "attention layers",
    "lora": "LoRA",
    "frozen": "frozen",
    "token": "one new word",
}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, before activations."""

    weights: int
    gradients: int
    optimizer: int
    average: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average


def memory_of(networks: Networks, config: Config, *, dtype: torch.dtype = torch.float32) -> Memory:
    """What weights (frozen ones in dtype), gradients, optimizer states and the average take; activations come
    on top."""
    trained = sum(p.numel() for _, p in networks.denoiser.trained())
    everything = sum(p.numel() for part in networks.denoiser.networks for p in part.parameters())
    vae = sum(p.numel() for p in networks.pipeline.vae.parameters())  # float32 always
    states = {"adamw": 8, "adamw8bit": 2, "prodigy": 16, "sgd": 0}[config.train.optimizer]
    average = 4 * trained if config.train.ema_decay else 0
    weights = 4 * (trained + vae) + dtype.itemsize * (everything - trained)
    return Memory(weights, 4 * trained, states * trained, average)


def plan_table(
    config: Config,
    networks: Networks,
    catalogue: Catalogue,
    buckets: Buckets,
    *,
    t_min: int,
    processes: int,
    dtype: torch.dtype,
    cached_text: bool,
) -> Table:
    """Steps, batch, what is trained, buckets, memory, the offset range and the samplers that set it.

    Raises ValueError on class weights that cannot be met.
    """
    options, pipeline = config.train, networks.pipeline
    total = pipeline.scheduler.config.num_train_timesteps
    per_step = options.batch_size * processes * options.gradient_accumulation
    factors = f"{options.batch_size} x {processes} process(es) x {options.gradient_accumulation} accumulation"
    table = Table(title="Plan", show_header=False)
    for row in _model_rows(config, networks):
        table.add_row(*row)
    table.add_row("global batch", f"{factors} = {per_step}")
    passes = options.steps * per_step / len(catalogue)
    table.add_row("steps", f"{options.steps}, {passes:.1f} passes over {len(catalogue)} pictures")
    draws = class_draws(
        catalogue.class_ids,
        catalogue.class_names,
        sampling=config.data.sampling,
        weights=config.data.class_weights,
    )
    if draws:
        shown = (f"{name} {drawn}" for name, drawn in zip(catalogue.class_names, draws, strict=True))
        table.add_row("draws an epoch", ", ".join(shown))
    if len(buckets.sizes) > 1:
        counts = (f"{h} x {w}: {count}" for (h, w), count in buckets.counts().items())
        table.add_row("buckets", ", ".join(counts) + "; leftovers open the next epoch's batches")
    else:
        height, width = buckets.sizes[0]
        table.add_row("size", f"{height} x {width}; nothing is dropped")
    size = embeddings_size(pipeline, catalogue.captions, dtype=dtype) / 2**20
    table.add_row("text", f"embeddings on disk, {size:.1f} MiB" if cached_text else "encoded in every step")
    memory = memory_of(networks, config, dtype=dtype)
    parts = ", ".join(f"{name} {_mib(value)}" for name, value in vars(memory).items() if value)
    table.add_row("memory", f"{_mib(memory.total)} and activations ({parts})")
    start = config.start
    parts = f"{start.band} frequencies an axis" if start.family == "dct" else f"K = {start.components}"
    table.add_row("start distribution", f"{start.family}, {parts}, {len(catalogue.class_names)} class(es)")
    table.add_row("offset range", _range_text(config, t_min, total))
    for sampler in samplers_of(config.start):
        first = first_timestep(build_scheduler(pipeline.scheduler, sampler), sampler.steps)
        table.add_row("", f"{sampler.scheduler}, {sampler.steps} steps: first timestep {first}")
    return table


def trained_of(model: ModelConfig) -> dict[str, str]:
    """What is trained of the UNet, and of text encoder and ControlNet where they are trained."""
    rank = f", rank {model.lora.rank}"
    trained = {"UNet": TRAINED[model.method] + (rank if model.method == "lora" else "")}
    if model.text_encoder != "frozen":
        more = {"token": f" {model.token.word}", "lora": rank}.get(model.text_encoder, "")
        trained["text encoder"] = TRAINED[model.text_encoder] + more
    if model.controlnet is not None:
        condition = model.controlnet.column or "the product cut out of its picture"
        trained["ControlNet"] = f"from {model.controlnet.source}, condition: {condition}"
    return trained


def _model_rows(config: Config, networks: Networks) -> list[tuple[str, str]]:
    parts = trained_of(config.model)
    trained = sum(p.numel() for _, p in networks.denoiser.trained())
    unet = sum(p.numel() for p in networks.pipeline.unet.parameters())
    base = f"{config.model.base}: UNet {parts.pop('UNet')}, {unet / 1e6:.1f} M parameters"
    return [
        ("base", base),
        *parts.items(),
        ("trained", f"{trained / 1e6:.2f} M parameters, {config.train.optimizer}"),
    ]


def _range_text(config: Config, offset_from: int, total: int) -> str:
    if offset_from >= total:
        return "empty: plain fine-tuning"
    share = (total - offset_from) / total
    drawn = config.start.emphasis if config.start.emphasis is not None else share
    return f"t >= {offset_from} of {total}: {share:.1%} of timesteps, drawn {drawn:.1%} of the time"


def _mib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def start_warning(alphas_cumprod: torch.Tensor, *, offset_from: int) -> str:
    """Why the offset will do nothing with this base's schedule, "" where it does something."""
    last = float(alphas_cumprod[-1])
    if offset_from < len(alphas_cumprod) and last < 1e-6:
        return (
            f"the base's schedule ends at alpha_T = {last:.1e} (zero terminal SNR): its last latents carry "
            "no image, so a sampler that begins at the last timestep begins at pure noise with or without a "
            "start distribution"
        )
    return ""
