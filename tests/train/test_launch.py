"""A run that gets another number of processes than was asked for stops before anything is done."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from onbrand.configs import Config
from onbrand.configs.load import RECIPES
from onbrand.train.launch import check_processes, frozen_dtype, processes_of, start_accelerator
from onbrand.train.models import load_base, prepare_networks
from onbrand.train.training import wrap_what_is_there
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

TORCHRUN = r"ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m onbrand train \.\.\.$"
ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("count", "on_cpu", "asked", "environment"),
    [
        (1, True, None, {}),
        (1, False, 1, {}),
        (1, True, 1, {"WORLD_SIZE": "1", **ADDRESS}),  # torchrun with one process
        (2, True, 2, {"WORLD_SIZE": "2", **ADDRESS}),  # torchrun with two on a CPU
        (8, False, None, {"WORLD_SIZE": "8", **ADDRESS}),
        (1, True, None, {"ACCELERATE_USE_FSDP": "false"}),
        (2, False, 2, {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2", **ADDRESS}),
    ],
)
def test_what_is_as_it_should_be(count: int, on_cpu: bool, asked: int | None, environment: dict) -> None:
    check_processes(count, on_cpu=on_cpu, asked=asked, environment=environment)


@pytest.mark.parametrize(
    ("count", "on_cpu", "asked", "environment", "message"),
    [
        # accelerate launch --cpu --num_processes 2: one process is started
        (1, True, None, ADDRESS, rf"as many processes as it is told, got 1 of several: .* {TORCHRUN}"),
        # accelerate launch --multi_gpu --num_processes 2 without a GPU: two that know nothing of each other
        (
            1,
            True,
            2,
            {"WORLD_SIZE": "2", **ADDRESS},
            rf"must work together, got 2 started by the launcher that each see 1: .* {TORCHRUN}",
        ),
        # and the other way round
        (2, True, None, {}, r"must work together, got 1 started by the launcher that each see 2"),
        (1, False, 4, {}, r"run.processes must be the number of processes started, got 4 with 1$"),
        (
            2,
            False,
            1,
            {"WORLD_SIZE": "2"},
            r"run.processes must be the number of processes started, got 1 with 2$",
        ),
        (1, True, None, {"ACCELERATE_USE_FSDP": "true"}, r"FSDP must run on GPUs, got a CPU"),
        (1, True, None, {"ACCELERATE_USE_FSDP": "True"}, r"FSDP must run on GPUs, got a CPU"),
        (2, True, None, {"ACCELERATE_USE_FSDP": "1", "WORLD_SIZE": "2"}, r"FSDP must run on GPUs, got a CPU"),
    ],
)
def test_what_is_not(count: int, on_cpu: bool, asked: int | None, environment: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_processes(count, on_cpu=on_cpu, asked=asked, environment=environment)


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_launcher")
def test_the_accelerator_is_the_configs(make_config: Callable[..., Config]) -> None:
    accelerator = start_accelerator(make_config(train__gradient_accumulation=3, run__processes=1))
    assert accelerator.num_processes == 1
    assert accelerator.gradient_accumulation_steps == 3
    assert accelerator.mixed_precision == "no"
    assert not accelerator.ddp_handler.find_unused_parameters


@pytest.mark.usefixtures("no_launcher")
def test_layers_that_take_no_part_are_looked_for_where_text_encoders_are_trained(
    make_config: Callable[..., Config],
) -> None:
    accelerator = start_accelerator(make_config(model__text_encoder="full"))
    assert accelerator.ddp_handler.find_unused_parameters


@pytest.mark.usefixtures("no_launcher")
def test_a_run_for_two_does_not_start_alone(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match=r"must be the number of processes started, got 2 with 1$"):
        start_accelerator(make_config(run__processes=2))


def test_work_is_divided_as_accelerate_counts() -> None:
    waits: list[int] = []
    accelerator = SimpleNamespace(process_index=2, num_processes=3, wait_for_everyone=lambda: waits.append(1))
    processes = processes_of(accelerator)
    assert processes.share(list("abcdefgh")) == ["c", "f"]
    assert not processes.is_main
    processes.wait()
    assert waits == [1]


@pytest.mark.usefixtures("no_launcher")
def test_alone_a_process_has_it_all(make_config: Callable[..., Config]) -> None:
    processes = processes_of(start_accelerator(make_config()))
    assert processes.is_main
    assert processes.share([1, 2, 3]) == processes.gather([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("mixed_precision", "kind", "dtype"),
    [
        ("no", DistributedType.NO, torch.float32),
        ("fp16", DistributedType.MULTI_GPU, torch.float16),
        ("bf16", DistributedType.NO, torch.bfloat16),
        ("bf16", DistributedType.FSDP, torch.float32),
    ],
)
def test_frozen_weights_take_the_training_precision_but_under_fsdp(
    mixed_precision: str, kind: DistributedType, dtype: torch.dtype
) -> None:
    accelerator = SimpleNamespace(mixed_precision=mixed_precision, distributed_type=kind)
    assert frozen_dtype(accelerator) == dtype


UNET, TEXT = {"BasicTransformerBlock", "ResnetBlock2D"}, {"CLIPEncoderLayer"}


@pytest.mark.parametrize(
    ("options", "sharded"),
    [
        ({}, UNET),
        ({"model__method": "lora"}, UNET),
        ({"model__text_encoder": "full"}, UNET | TEXT),
        ({"model__method": "frozen", "model__text_encoder": "full"}, TEXT),
        ({"model__method": "frozen", "model__controlnet": "{condition: segment}"}, UNET),
    ],
)
def test_the_layers_of_trained_networks_are_sharded_one_by_one(
    make_config: Callable[..., Config], options: dict, sharded: set[str]
) -> None:
    config = make_config(**options).model
    denoiser = prepare_networks(load_base(config), config).denoiser
    shipped = yaml.safe_load((RECIPES / "launch" / "fsdp2.yaml").read_text())["fsdp_config"]
    plugin = SimpleNamespace(
        auto_wrap_policy=transformer_auto_wrap_policy,
        transformer_cls_names_to_wrap=shipped["fsdp_transformer_layer_cls_to_wrap"].split(","),
    )
    wrap_what_is_there(plugin, denoiser)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, denoiser)
    assert {type(module).__name__ for module in denoiser.modules() if policy(module)} == sharded
