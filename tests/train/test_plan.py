"""What a plan promises against what a run takes."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from onbrand.configs import Config
from onbrand.data import Catalogue, Picture
from onbrand.data.buckets import Buckets
from onbrand.train.models import Networks, load_base, prepare_networks
from onbrand.train.optimizers import build_optimizer
from onbrand.train.plan import memory_of, plan_table, start_warning
from rich.console import Console

MakeConfig = Callable[..., Config]
METHODS = {
    "full": {},
    "lora": {"model__method": "lora", "model__lora__rank": 2},
    "controlnet": {"model__method": "frozen", "model__controlnet": "{condition: segment}"},
}


def networks_of(config: Config, dtype: torch.dtype = torch.float32) -> Networks:
    return prepare_networks(load_base(config.model), config.model, weight_dtype=dtype)


def held_by(networks: Networks) -> int:
    """Bytes of all parameters that a run holds."""
    parts = [*networks.denoiser.networks, networks.pipeline.vae]
    return sum(p.nbytes for part in parts for p in part.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_memory_adds_up(make_config: MakeConfig, method: str) -> None:
    config = make_config(**METHODS[method])
    networks = networks_of(config)
    memory = memory_of(networks, config)
    trained = [weight for _, weight in networks.denoiser.trained()]
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    optimizer = build_optimizer(networks.denoiser, config.train)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert memory.weights == held_by(networks)
    assert memory.gradients == memory.average == sum(weight.grad.nbytes for weight in trained)
    assert memory.optimizer == sum(value.nbytes for value in states if value.ndim)
    assert memory.total == memory.weights + memory.gradients + memory.optimizer + memory.average


def test_without_averages_and_states_there_is_less(make_config: MakeConfig) -> None:
    config = make_config(train__ema_decay=0, train__optimizer="sgd")
    memory = memory_of(networks_of(config), config)
    assert (memory.average, memory.optimizer) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_memory_adds_up_in_half_precision(make_config: MakeConfig, method: str) -> None:
    config = make_config(**METHODS[method])
    networks = networks_of(config, torch.bfloat16)
    assert memory_of(networks, config, dtype=torch.bfloat16).weights == held_by(networks)


def shown(config: Config, **options: object) -> str:
    pictures = [Picture(b"", f"a {name}", name) for name in ["mug"] * 6 + ["bag"] * 2]
    catalogue = Catalogue(pictures)
    buckets = Buckets([(32, 32), (48, 24)], torch.tensor([0] * 5 + [1] * 3))
    options = {"buckets": buckets, "dtype": torch.float32, "t_min": 900} | options
    options = {"processes": 1, "cached_text": True} | options
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(plan_table(config, networks_of(config), catalogue, **options))
    return " ".join(console.export_text().split())


def test_a_plan_says_what_each_step_is_made_of(make_config: MakeConfig) -> None:
    config = make_config(train__gradient_accumulation=3, start__emphasis=0.25)
    text = shown(config, processes=2)
    for words in (
        "4 x 2 process(es) x 3 accumulation = 24",
        "6, 18.0 passes over 8 pictures",
        "32 x 32: 5, 48 x 24: 3",
        "t >= 900 of 1000: 10.0% of timesteps, drawn 25.0% of the time",
        "embeddings on disk",
        "UNet all weights",
    ):
        assert words in text, words
    assert "draws an epoch" not in text
    assert "encoded in every step" in shown(config, cached_text=False)
    assert "empty: plain fine-tuning" in shown(config, t_min=1000)


def test_a_plan_says_what_is_trained(make_config: MakeConfig) -> None:
    for options, words in {
        "lora": "UNet LoRA, rank 2",
        "controlnet": "from unet, condition: the product cut out of its picture",
    }.items():
        assert words in shown(make_config(**METHODS[options]))
    token = make_config(model__method="frozen", model__text_encoder="token", model__token__initial="a")
    assert "one new word <brand>" in shown(token)


def test_a_plan_says_how_often_classes_are_drawn(make_config: MakeConfig) -> None:
    assert "bag 4, mug 4" in shown(make_config(data__sampling="balanced"))
    with pytest.raises(ValueError, match=r"must name classes of \['bag', 'mug'\], got \['mugs'\]"):
        shown(make_config(data__class_weights="{mugs: 2}"))


def test_zero_terminal_snr_is_warned_of() -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    plain, rescaled = (
        DDIMScheduler(**betas, rescale_betas_zero_snr=zero).alphas_cumprod for zero in (False, True)
    )
    assert start_warning(plain, offset_from=941) == ""
    assert "zero terminal SNR" in start_warning(rescaled, offset_from=941)
    assert start_warning(rescaled, offset_from=1000) == ""  # nothing starts there
