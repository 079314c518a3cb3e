"""The card of a run says what was trained, of what, and in which batches."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from onbrand.configs import Config
from onbrand.pca import StartDistribution
from onbrand.train.card import write_run_card


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "UNet all weights"),
        (
            {"model__method": "lora", "model__lora__rank": 2, "model__text_encoder": "lora"},
            "UNet LoRA, rank 2; text encoder LoRA, rank 2",
        ),
        (
            {"model__method": "frozen", "model__text_encoder": "token"},
            "UNet frozen; text encoder one new word <brand>",
        ),
        (
            {"model__method": "frozen", "model__controlnet": "{condition: column, column: depth}"},
            "UNet frozen; ControlNet from unet, condition: depth",
        ),
    ],
)
def test_a_card_says_what_was_trained(
    make_config: Callable[..., Config], tmp_path: Path, options: dict, said: str
) -> None:
    config = make_config(train__gradient_accumulation=3, **options)
    start = StartDistribution(class_names=["mug"], latent_shape=[4, 8, 8])
    card = write_run_card(config, start, vae_scale_factor=4, run=tmp_path, folder=tmp_path)
    assert f"- trained: {said}; 6 steps of 12 pictures, learning rate 0.001\n" in card.read_text()
    (tmp_path / "inputs.json").write_text(json.dumps({"global batch": 24}))  # in two processes
    write_run_card(config, start, vae_scale_factor=4, run=tmp_path, folder=tmp_path)
    assert "; 6 steps of 24 pictures, " in card.read_text()
