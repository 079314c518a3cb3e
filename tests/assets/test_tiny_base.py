"""The packaged base does what the laboratory needs; each claim is measured on the committed weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from onbrand.assets.base import encode
from onbrand.assets.gate import CLASSIFIER, load_classifier, score
from onbrand.configs import Config
from onbrand.configs.schema import ModelConfig
from onbrand.data.studio import CLASSES, COLOURS, Product, Shot
from onbrand.inference.generate import generate
from onbrand.train.models import TINY_BASE, load_base
from onbrand.train.run import run_training
from rich.console import Console


@pytest.fixture(scope="module")
def base() -> StableDiffusionPipeline:
    return load_base(ModelConfig())


def test_it_is_small_and_loads_without_us() -> None:
    size = sum(path.stat().st_size for path in [*TINY_BASE.rglob("*"), CLASSIFIER] if path.is_file())
    assert size <= 12e6
    plain = StableDiffusionPipeline.from_pretrained(TINY_BASE)
    assert plain.scheduler.config.timestep_spacing == "leading"


def test_it_leaks_as_strongly_as_stable_diffusion(base: StableDiffusionPipeline) -> None:
    d = 4 * 16 * 16
    assert 74 < d * float(base.scheduler.alphas_cumprod[-1]) < 78


def test_latents_are_of_unit_scale_and_white_is_far_from_zero(base: StableDiffusionPipeline) -> None:
    wild, white = (
        encode(base.vae, np.stack([np.asarray(Shot(look, 64, 50, i).draw()) for i in range(96)]))
        for look in ("wild", "on-brand")
    )
    assert 0.8 < float(wild.std()) < 1.25
    assert float(white.mean(dim=(0, 2, 3)).abs().max()) >= 1


def test_cross_attention_sees_a_quarter_of_the_latent_size_or_finer(base: StableDiffusionPipeline) -> None:
    sizes = []
    for name, module in base.unet.named_modules():
        if name.endswith("attn2"):
            module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[1]))
    base.unet(torch.zeros(1, 4, 16, 16), 0, torch.zeros(1, 32, 64))
    assert {16, 64} <= set(sizes)


def test_prompts_control_kind_and_colour(base: StableDiffusionPipeline) -> None:
    colours = sorted(COLOURS)
    casts = [(Product(CLASSES[i % 8], colours[(3 * i) % 10]),) for i in range(24)]
    pictures = generate(base, [cast[0].words() for cast in casts])
    found = score(load_classifier(), np.stack([np.asarray(picture) for picture in pictures]), casts)
    assert found["class right"] >= 0.8
    assert found["colour right"] >= 0.7


def test_a_little_offset_training_keeps_the_white_from_the_class_mean_alone(
    make_config: Callable[..., Config],
) -> None:
    import json

    config = make_config(
        model__base="tiny-base", data__studio__pictures=160, train__steps=30, train__batch_size=16,
        train__learning_rate=3e-4, train__preview_every=30, train__checkpoint_every=30, start__emphasis=0.15,
        run__audit__pictures=24,
    )  # fmt: skip
    run = run_training(config, console=Console(quiet=True))
    rates = {
        name: json.loads((Path(run) / "audits" / f"{name}.json").read_text())["rules"]["background"]
        for name in ("base_model", "from_pure_noise", "from_start_distribution")
    }
    assert rates["base_model"] <= 0.1
    assert rates["from_pure_noise"] <= 0.25
    assert rates["from_start_distribution"] >= rates["from_pure_noise"] + 0.4
