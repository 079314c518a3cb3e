"""What a training run holds in memory, set up anew or restored from its newest complete checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.distributed.tensor import DTensor

from ..configs.schema import Config
from .checkpoint import load_average, newest_complete, save_by_name, step_of
from .metrics import rewind_metrics
from .models import Networks, checkpoint_gradients
from .optimizers import build_optimizer


@dataclass
class Training:
    """A run's state. `denoiser` is the module as accelerate wrapped it, `weights` the trained parameters by
    name, `average` their EMA."""

    accelerator: Accelerator
    networks: Networks
    denoiser: torch.nn.Module
    weights: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Any
    average: EMAModel | None
    first_step: int = 0
    spare: Networks | None = None  # whole copies to evaluate with, where the trained weights are sharded

    def averaged_weights(self) -> dict[str, torch.Tensor] | None:
        """The averages by name, whole and on the CPU, or None without averaging. All processes call it."""
        if self.average is None:
            return None
        return {
            name: whole(weight) for name, weight in zip(self.weights, self.average.shadow_params, strict=True)
        }

    def shipped_weights(self) -> dict[str, torch.Tensor]:
        """What is exported, by name: the averages, or the weights themselves. All processes call it."""
        return self.averaged_weights() or {name: whole(weight) for name, weight in self.weights.items()}

    @torch.no_grad()
    def update_average(self) -> None:
        """Moves the averages towards the weights, all at once: EMAModel would go tensor by tensor."""
        if self.average is not None:
            self.average.optimization_step += 1
            decay = self.average.get_decay(self.average.optimization_step)
            weights: list[torch.Tensor] = list(self.weights.values())
            torch._foreach_lerp_(list(self.average.shadow_params), weights, 1 - decay)

    @contextmanager
    def evaluation(self) -> Iterator[Networks]:
        """Networks with the averages in place of the trained weights, in evaluation mode, for the length of
        the block. All processes enter it; inside each may do as it likes.

        Where weights are sharded these are a copy that is whole on every process.
        """
        if self.spare is not None:
            self.spare.denoiser.load_state_dict(self.shipped_weights(), strict=False)
            move(self.spare, self.accelerator.device)
            yield self.spare
            move(self.spare, "cpu")
            return
        weights, modes = list(self.weights.values()), _modes(self.networks.denoiser)
        if self.average:
            self.average.store(weights)
            self.average.copy_to(weights)
        self.networks.denoiser.eval()
        try:
            yield self.networks
        finally:
            for module, mode in modes.items():
                module.training = mode
            if self.average:
                self.average.restore(weights)


def _modes(module: torch.nn.Module) -> dict[torch.nn.Module, bool]:
    return {part: part.training for part in module.modules()}


def move(networks: Networks, device: Any) -> None:
    """Moves the networks of the denoiser; the VAE follows its pipeline."""
    for network in networks.denoiser.networks:
        network.to(device)


def whole(weight: torch.Tensor) -> torch.Tensor:
    """A weight on the CPU, gathered from all processes where it is sharded."""
    weight = weight.detach()
    if isinstance(weight, DTensor):
        weight = weight.full_tensor().clone()  # a clone is a plain tensor, whose bytes can be saved
    return weight.cpu().contiguous()


def wrap_what_is_there(plugin: Any, denoiser: torch.nn.Module) -> None:
    """Leaves out of the layers that FSDP shards one by one those the denoiser lacks: accelerate refuses them.

    A launch config names those of all networks; frozen ones are not in the denoiser.
    """
    there = {type(module).__name__ for module in denoiser.modules()}
    names = plugin.transformer_cls_names_to_wrap or []
    plugin.transformer_cls_names_to_wrap = [name for name in names if name in there]


def set_up(
    config: Config,
    networks: Networks,
    accelerator: Accelerator,
    *,
    run: Path,
    warn: Callable[[str], None] = lambda text: None,
) -> Training:
    """Networks, optimizer and averages on their devices, restored from the newest complete checkpoint, if
    any; `warn` is told of checkpoints that had to be skipped."""
    options, denoiser = config.train, networks.denoiser
    move(networks, accelerator.device)
    networks.rest()
    if options.channels_last:
        for network in denoiser.networks:
            network.to(memory_format=torch.channels_last)
    if options.gradient_checkpointing:
        # a frozen UNet too: gradients of text encoders and ControlNet pass through it
        checkpoint_gradients({denoiser.unet, *denoiser.children()})
    if options.compile:
        networks.pipeline.unet.compile()
    spare = None
    if accelerator.distributed_type == DistributedType.FSDP:
        wrap_what_is_there(accelerator.state.fsdp_plugin, denoiser)
        spare = copy.deepcopy(networks)
        spare.denoiser.requires_grad_(False).eval()
        move(spare, "cpu")
    names = [name for name, _ in denoiser.trained()]
    raw = build_optimizer(denoiser, options)
    rates = [group["lr"] for group in raw.param_groups]
    wrapped, optimizer = accelerator.prepare(denoiser, raw)
    weights = dict(zip(names, (p for p in wrapped.parameters() if p.requires_grad), strict=True))
    save_by_name(accelerator, weights)
    average = None
    if options.ema_decay:
        average = EMAModel(weights.values(), decay=options.ema_decay, use_ema_warmup=True, power=0.75)
    saved, first_step = newest_complete(accelerator, run, warn=warn), 0
    if saved:
        first_step = step_of(saved)
        accelerator.load_state(str(saved))
        accelerator.step = 0  # of batches in the step that accumulates: none yet, whatever came before
        if average:
            load_average(average, saved, names)
    if accelerator.is_main_process:
        rewind_metrics(run, first_step)
    # the schedule is a function of the step: nothing to save, nothing to load
    for group, rate in zip(raw.param_groups, rates, strict=True):
        group["initial_lr"] = rate
    constant = "constant_with_warmup" if options.warmup_steps else "constant"
    schedule = get_scheduler(
        constant if options.schedule == "constant" else options.schedule,
        raw,
        num_warmup_steps=options.warmup_steps,
        num_training_steps=options.steps,
        last_epoch=first_step - 1,
    )
    return Training(accelerator, networks, wrapped, weights, optimizer, schedule, average, first_step, spare)
