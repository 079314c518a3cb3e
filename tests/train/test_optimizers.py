"""Which optimizer a config names, over which weights, at which rates."""

import importlib.util
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from onbrand.configs import Config
from onbrand.train.denoiser import Denoiser
from onbrand.train.models import load_base, prepare_networks
from onbrand.train.optimizers import LIBRARIES, build_optimizer, check_optimizer

MakeConfig = Callable[..., Config]
BOTH = {"model__method": "lora", "model__lora__rank": 2, "model__text_encoder": "lora"}


def denoiser_of(config: Config) -> Denoiser:
    return prepare_networks(load_base(config.model), config.model).denoiser


def rates_of(denoiser: Denoiser, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rate of each trained weight; each must be in one group."""
    names = {id(weight): name for name, weight in denoiser.trained()}
    pairs = [(names[id(p)], group["lr"]) for group in optimizer.param_groups for p in group["params"]]
    assert len(pairs) == len(names)
    return dict(pairs)


@pytest.mark.parametrize("text_rate", [None, 3e-5])
def test_text_encoders_have_their_own_rate(make_config: MakeConfig, text_rate: float | None) -> None:
    config = make_config(train__text_encoder_learning_rate=text_rate, **BOTH)
    denoiser = denoiser_of(config)
    rates = rates_of(denoiser, build_optimizer(denoiser, config.train))
    assert {name.split(".")[0] for name in rates} == {"unet", "text_encoder"}
    for name, rate in rates.items():
        assert rate == (text_rate if text_rate and name.startswith("text_encoder.") else 1e-3), name


def test_every_encoder_of_sdxl_is_in_the_text_group(make_config: MakeConfig, tiny, tmp_path) -> None:
    base = tiny.save_xl_base(tmp_path / "xl")
    config = make_config(model__base=base, train__text_encoder_learning_rate=3e-5, **BOTH)
    denoiser = denoiser_of(config)
    rates = rates_of(denoiser, build_optimizer(denoiser, config.train))
    parts: dict[str, set[float]] = {}
    for name, rate in rates.items():
        parts.setdefault(name.split(".")[0], set()).add(rate)
    assert parts == {"unet": {1e-3}, "text_encoder": {3e-5}, "text_encoder_2": {3e-5}}


def test_a_frozen_unet_has_no_group(make_config: MakeConfig) -> None:
    config = make_config(model__method="frozen", model__text_encoder="full")
    denoiser = denoiser_of(config)
    optimizer = build_optimizer(denoiser, config.train)
    assert len(optimizer.param_groups) == 1
    assert all(name.startswith("text_encoder.") for name in rates_of(denoiser, optimizer))


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_optimizers_of_torch(make_config: MakeConfig, name: str, kind: type) -> None:
    config = make_config(train__optimizer=name, train__weight_decay=0.3, **BOTH)
    denoiser = denoiser_of(config)
    optimizer = build_optimizer(denoiser, config.train)
    assert type(optimizer) is kind
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3}
    assert_it_descends(denoiser, optimizer)


def assert_it_descends(denoiser: Denoiser, optimizer: torch.optim.Optimizer) -> None:
    before = {name: weight.detach().clone() for name, weight in denoiser.trained()}
    for _ in range(2):
        for _, weight in denoiser.trained():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert all((weight < before[name]).all() for name, weight in denoiser.trained() if before[name].any())


@pytest.mark.parametrize("name", LIBRARIES)
def test_other_libraries_are_given_groups_rates_and_decay(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Against a stand-in, so that this is known where the library is not installed."""
    made: list[dict] = []

    def stand_in(groups: list[dict], **options: object) -> str:
        made.append({"groups": groups, **options})
        return "made"

    library = SimpleNamespace(Prodigy=stand_in, optim=SimpleNamespace(AdamW8bit=stand_in))
    monkeypatch.setitem(sys.modules, LIBRARIES[name], library)
    config = make_config(train__optimizer=name, train__learning_rate=0.5, **BOTH)
    denoiser = denoiser_of(config)
    assert build_optimizer(denoiser, config.train) == "made"
    (options,) = made
    assert (options["lr"], options["weight_decay"]) == (0.5, 0.01)
    assert [group["lr"] for group in options["groups"]] == [0.5, 0.5]
    assert sum(len(group["params"]) for group in options["groups"]) == len(list(denoiser.trained()))


def test_prodigy(make_config: MakeConfig) -> None:
    prodigyopt = pytest.importorskip("prodigyopt")
    config = make_config(train__optimizer="prodigy", train__learning_rate=1.0, **BOTH)
    denoiser = denoiser_of(config)
    optimizer = build_optimizer(denoiser, config.train)
    assert type(optimizer) is prodigyopt.Prodigy
    assert_it_descends(denoiser, optimizer)


def test_eight_bit_adam(make_config: MakeConfig) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    config = make_config(train__optimizer="adamw8bit", **BOTH)
    optimizer = build_optimizer(denoiser_of(config), config.train)
    assert type(optimizer) is bitsandbytes.optim.AdamW8bit


@pytest.mark.parametrize(("name", "library"), LIBRARIES.items())
def test_a_library_that_is_not_installed_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: asked.append(wanted))
    message = rf"train.optimizer must come from an installed library, got '{name}': pip install {library}$"
    with pytest.raises(ValueError, match=message):
        check_optimizer(name)
    assert asked == [library]
    check_optimizer("adamw")
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: wanted)
    check_optimizer(name)
