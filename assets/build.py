"""Builds the tiny base from nothing: `python -m onbrand.assets.build --work WORK --out FOLDER`.

Draws the studio, trains the autoencoder, encodes the wild look, trains text encoder and UNet. Every stage
keeps its result in WORK and is skipped, or resumed from its newest checkpoint, when the command is given
again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from ..data.studio import Shot
from ..whole_file import whole
from . import base as base_stage
from . import vae as vae_stage
from .pictures import drawn_once
from .tokenizer import WORDS, build_tokenizer

SEED, WILD, ON_BRAND = 1, 60_000, 4_000


def build(
    work: Annotated[Path, typer.Option(help="Keeps pictures, checkpoints and loss curves")],
    out: Annotated[Path, typer.Option(help="The diffusers folder to write")],
    vae_steps: int = vae_stage.STEPS,
    base_steps: int = base_stage.STEPS,
    pictures: int = WILD,
) -> None:
    """Trains the tiny base and writes it, UNet and VAE in float16, with its loss curves and sample sheet."""
    work.mkdir(parents=True, exist_ok=True)
    wild, captions = drawn_once([Shot("wild", 64, SEED, i) for i in range(pictures)], file=work / "wild.npy")
    white, _ = drawn_once([Shot("on-brand", 64, SEED, i) for i in range(ON_BRAND)], file=work / "white.npy")
    build_base(
        wild,
        captions,
        # the autoencoder sees both looks, as a general-purpose one would
        seen_by_vae=np.concatenate([wild[:20_000], white]),
        work=work,
        out=out,
        steps={"vae": vae_steps, "base": base_steps},
        told=lambda vae: {
            "command": "python -m onbrand.assets.build --work WORK --out assets/tiny-base",
            "seed": SEED,
            "pictures": {"wild": pictures, "on-brand (autoencoder only)": ON_BRAND},
            "mean scaled latent of on-brand pictures, by channel": _white_mean(vae, white),
        },
    )


def build_base(
    pictures: np.ndarray,
    captions: list[str],
    *,
    seen_by_vae: np.ndarray,
    words: Sequence[str] = WORDS,
    work: Path,
    out: Path,
    steps: Mapping[str, int],
    told: Callable[[AutoencoderKL], dict[str, Any]],
) -> None:
    """Trains an autoencoder, then a text encoder and a UNet, and writes them as a diffusers folder.

    pictures, seen_by_vae: (N, 64, 64, 3) uint8; words: one token each; steps: of `vae` and `base`; told: what
    the history says of their making, given the autoencoder in float32.
    """
    vae = _vae(seen_by_vae, work=work, steps=steps["vae"])
    latents = _latents(vae, pictures, work=work)
    tokenizer = build_tokenizer(work / "tokenizer", words)
    unet, text_encoder = _timed(
        work,
        "base",
        lambda: base_stage.train_base(latents, captions, tokenizer, work=work, steps=steps["base"]),
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=base_stage.tiny_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    vae.register_to_config(_name_or_path=out.name)
    history = told(vae.float())
    # not the text encoder: transformers would load it in float16, where diffusers loads these in float32
    for module in (vae, unet):
        module.to(dtype=torch.float16)
    with whole(out) as beside:
        pipeline.save_pretrained(beside)
        _keep_history(work, beside, steps=steps, told=history)


def _vae(pictures: np.ndarray, *, work: Path, steps: int) -> AutoencoderKL:
    """The trained autoencoder."""
    folder = work / "vae_model"
    if not folder.exists():
        vae = _timed(work, "vae", lambda: vae_stage.train_vae(pictures, work=work, steps=steps))
        vae.save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder)


def _latents(vae: AutoencoderKL, pictures: np.ndarray, *, work: Path) -> torch.Tensor:
    file = work / "latents.safetensors"
    if not file.exists():
        with whole(file) as beside:
            save_file({"latents": base_stage.encode(vae, pictures)}, beside)
    return load_file(file)["latents"]


def _white_mean(vae: AutoencoderKL, white: np.ndarray) -> list[float]:
    """Mean scaled latent of the on-brand pictures, a value a channel."""
    return [round(m, 3) for m in base_stage.encode(vae, white[:512]).mean(dim=(0, 2, 3)).tolist()]


def _timed(work: Path, stage: str, run: Callable):  # type: ignore[no-untyped-def, type-arg]
    """Runs a stage and adds its wall time to work/times.json, so that a resumed stage counts whole."""
    file = work / "times.json"
    times = json.loads(file.read_text()) if file.exists() else {}
    began = time.time()
    try:
        return run()
    finally:
        times[stage] = round(times.get(stage, 0) + time.time() - began)
        file.write_text(json.dumps(times))


def _keep_history(work: Path, out: Path, *, steps: Mapping[str, int], told: Mapping[str, Any]) -> None:
    """What was done, beside the result: settings, times, loss curves."""
    history = {
        **told,
        "vae": {"steps": steps["vae"], "batch": vae_stage.BATCH, "learning_rate": vae_stage.LEARNING_RATE},
        "base": {
            "steps": steps["base"],
            "batch": base_stage.BATCH,
            "learning_rate": base_stage.LEARNING_RATE,
        },
        "schedule": base_stage.SCHEDULE,
        "seconds": json.loads((work / "times.json").read_text()),
    }
    (out / "training").mkdir()
    (out / "training" / "history.json").write_text(json.dumps(history, indent=1) + "\n")
    for stage in ("vae", "base"):
        shutil.copyfile(work / f"{stage}.jsonl", out / "training" / f"{stage}.jsonl")


if __name__ == "__main__":
    typer.run(build)
