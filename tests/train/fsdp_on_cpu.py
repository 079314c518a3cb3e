"""Runs a config under FSDP2 on the CPU (gloo), where accelerate has no way to ask for it: its answer to which
kind of training this is, is put in its mouth, with the settings of launch/fsdp2.yaml. Started by torchrun:
fsdp_on_cpu.py KEY.SUB=VALUE ..."""

import sys

import onbrand.train.run as run
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from onbrand.configs import Config, config_of
from onbrand.configs.load import RECIPES
from onbrand.train.launch import start_accelerator
from rich.console import Console


def shipped_plugin() -> FullyShardedDataParallelPlugin:
    """What accelerate makes of launch/fsdp2.yaml."""
    settings = yaml.safe_load((RECIPES / "launch" / "fsdp2.yaml").read_text())["fsdp_config"]
    return FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"],
        transformer_cls_names_to_wrap=settings["fsdp_transformer_layer_cls_to_wrap"].split(","),
        state_dict_type=settings["fsdp_state_dict_type"],
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
    )


def start_sharded(config: Config) -> Accelerator:
    accelerator = start_accelerator(config)
    accelerator.state.fsdp_plugin = shipped_plugin()
    kind = property(lambda _: DistributedType.FSDP, lambda _, value: None)
    Accelerator.distributed_type = kind  # type: ignore[assignment, method-assign]
    AcceleratorState.distributed_type = kind  # type: ignore[attr-defined]
    assert accelerator.is_fsdp2
    return accelerator


if __name__ == "__main__":
    run.start_accelerator = start_sharded  # type: ignore[assignment]
    run.run_training(config_of(sys.argv[1:]), console=Console(quiet=True))
