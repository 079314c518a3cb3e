"""The processes of a run: how many there are, and whether that is what was asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    gather_object,
)

from ..configs.schema import Config
from ..data.processes import Processes

SLOWEST_STAGE = timedelta(hours=2)  # how long processes wait for the last one
TORCHRUN = "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m onbrand train ..."


def start_accelerator(config: Config) -> Accelerator:
    """The run's Accelerator. Raises ValueError if fewer or more processes came than were asked for."""
    handlers = [
        InitProcessGroupKwargs(timeout=SLOWEST_STAGE),
        # the last layers of SDXL's first text encoder take no part in the loss
        DistributedDataParallelKwargs(find_unused_parameters=config.model.text_encoder != "frozen"),
    ]
    accelerator = Accelerator(
        mixed_precision=config.train.mixed_precision,
        gradient_accumulation_steps=config.train.gradient_accumulation,
        log_with=None if config.run.tracker == "none" else config.run.tracker,
        project_dir=config.run.dir,
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        kwargs_handlers=handlers,
    )
    if accelerator.gradient_accumulation_steps != config.train.gradient_accumulation:
        raise ValueError(
            f"train.gradient_accumulation must be what the launch config says, got "
            f"{config.train.gradient_accumulation} with {accelerator.gradient_accumulation_steps}"
        )
    if plugin := accelerator.state.deepspeed_plugin:
        # DeepSpeed wants to know it before it sees a loader
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.train.batch_size
    check_processes(
        accelerator.num_processes,
        on_cpu=accelerator.device.type == "cpu",
        asked=config.run.processes,
        environment=os.environ,
    )
    return accelerator


def frozen_dtype(accelerator: Accelerator) -> torch.dtype:
    """What frozen weights are kept in: the training precision; float32 under FSDP, which shards weights of
    one dtype together."""
    if accelerator.distributed_type == DistributedType.FSDP:
        return torch.float32
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def check_processes(count: int, *, on_cpu: bool, asked: int | None, environment: Mapping[str, str]) -> None:
    """Raises ValueError unless the run has the number of processes its launcher or config asked for.

    accelerate's launcher starts one process for `--cpu --num_processes 2`, and two that know nothing of
    each other for `--multi_gpu` where there is no GPU; either would train another run than was meant. FSDP
    does nothing on a CPU. environment: os.environ.
    """
    if on_cpu and environment.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1"):
        raise ValueError("FSDP must run on GPUs, got a CPU, where accelerate would leave it out silently")
    world = int(environment.get("WORLD_SIZE", 1))
    if world != count:
        raise ValueError(
            f"processes must work together, got {world} started by the launcher that each see {count}: "
            f"on a CPU start them by {TORCHRUN}"
        )
    # accelerate's launcher sets the address for several processes, and starts one
    if "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment and count == 1:
        raise ValueError(
            f"the launcher must start as many processes as it is told, got 1 of several: on a CPU start them "
            f"by {TORCHRUN}"
        )
    if asked is not None and asked != count:
        raise ValueError(f"run.processes must be the number of processes started, got {asked} with {count}")


def processes_of(accelerator: Accelerator) -> Processes:
    """What work is divided over."""
    return Processes(
        index=accelerator.process_index,
        count=accelerator.num_processes,
        gather=gather_object,
        wait=accelerator.wait_for_everyone,
    )
