"""Runs a config under FSDP2 on the CPU (gloo), where accelerate has no way to ask for it: its answer to which
kind of training this is, is put in its mouth. Started by torchrun: fsdp_on_cpu.py KEY.SUB=VALUE ..."""

import sys

import onbrand.train.run as run
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from onbrand.configs import Config, config_of
from onbrand.train.launch import start_accelerator
from rich.console import Console


def start_sharded(config: Config) -> Accelerator:
    accelerator = start_accelerator(config)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BasicTransformerBlock", "ResnetBlock2D"],
        state_dict_type="SHARDED_STATE_DICT",
        reshard_after_forward=True,
    )
    kind = property(lambda _: DistributedType.FSDP, lambda _, value: None)
    Accelerator.distributed_type = kind  # type: ignore[assignment, method-assign]
    AcceleratorState.distributed_type = kind  # type: ignore[attr-defined]
    assert accelerator.is_fsdp2
    return accelerator


if __name__ == "__main__":
    run.start_accelerator = start_sharded  # type: ignore[assignment]
    run.run_training(config_of(sys.argv[1:]), console=Console(quiet=True))
