"""What is compared: ways to fine-tune the tiny base, ours and those that people use instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from onbrand.configs import load_config
from onbrand.configs.schema import Config
from onbrand.inference.load import load_pipeline
from onbrand.pca.offset import offset_target
from onbrand.train import step
from onbrand.train.models import TINY_BASE
from onbrand.train.run import run_training
from rich.console import Console

from .catalogue import catalogue_folder

PICTURES = 2000
RECIPE = (
    "train.steps=1500",
    "train.checkpoint_every=500",
    "train.preview_every=1500",
    "train.validate_every=500",
    "run.audit.pictures=16",
)
PLAIN = ("start.enabled=false", "start.emphasis=null")
Objective = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Training:
    """The demo recipe with overrides.

    objective: in the place of `offset_target`; schedule: scheduler settings that the base is given first;
    pictures: of the catalogue.
    """

    overrides: tuple[str, ...] = ()
    objective: Objective | None = None
    schedule: tuple[tuple[str, Any], ...] = ()
    pictures: int = PICTURES


def noise_offset(x_0: torch.Tensor, x_start: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor,
                 **schedule: Any) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The noise with .1 of a value a channel on top, as diffusers' `--noise_offset 0.1`."""
    shift = torch.randn(*noise.shape[:2], 1, 1, device=noise.device)
    return offset_target(x_0, x_start, noise + 0.1 * shift, timesteps, **schedule)


def input_perturbation(x_0: torch.Tensor, x_start: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor,
                       **schedule: Any) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Latents are noised a tenth more than the target says, as diffusers' `--input_perturbation 0.1`."""
    more = noise + 0.1 * torch.randn_like(noise)
    noisy_latents, _ = offset_target(x_0, x_start, more, timesteps, **schedule)
    return noisy_latents, offset_target(x_0, x_start, noise, timesteps, **schedule)[1]


def multi_resolution(x_0: torch.Tensor, x_start: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor,
                     **schedule: Any) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Noise of ever coarser grids on top, each .3 as strong as the one before, scaled back to deviation 1."""
    height, width = noise.shape[-2:]
    layered, weight, side = noise, 1.0, min(height, width)
    while side > 1:
        side, weight = side // 2, weight * 0.3
        coarse = torch.randn(*noise.shape[:2], height * side // min(height, width),
                             width * side // min(height, width), device=noise.device)  # fmt: skip
        layered = layered + weight * F.interpolate(coarse, size=(height, width), mode="bilinear")
    return offset_target(x_0, x_start, layered / layered.std(), timesteps, **schedule)


def _offset(components: int) -> Training:
    return Training((f"start.components={components}",))


ZERO_SNR = (
    ("rescale_betas_zero_snr", True),
    ("prediction_type", "v_prediction"),
    ("timestep_spacing", "trailing"),
)
# d * alphas_cumprod[-1] = 1 with d = 1024, found by bisection of beta_end at the tiny base's beta_start
SMALL_LAST_ALPHA = (("beta_end", 0.016134),)

TRAININGS = {
    "plain": Training(PLAIN),
    "offset": _offset(0),
    "offset PCA-1": _offset(1),
    "offset PCA-3": _offset(3),
    "offset PCA-8": _offset(8),
    "offset text PCA-8": Training(("start.family=text", "start.components=8")),
    "smaller a_T": Training(PLAIN, schedule=SMALL_LAST_ALPHA),
    "noise offset": Training(PLAIN, noise_offset),
    "input perturbation": Training(PLAIN, input_perturbation),
    "multi-resolution noise": Training(PLAIN, multi_resolution),
    "zero terminal SNR": Training(PLAIN, schedule=ZERO_SNR),
}


def config_of(name: str, seed: int, *, work: Path, start: Sequence[str] = ()) -> Config:
    """The config of one training, its run in WORK; start: overrides to fit another start to its pictures."""
    training = TRAININGS[name]
    return load_config(
        "demo",
        [*RECIPE, f"model.base={_base(training, work)}", f"run.seed={seed}",
         f"run.dir={work / 'runs' / name.replace(' ', '_')}_{seed}", f"data.cache_dir={work / 'latents'}",
         f"data.source={catalogue_folder(training.pictures, work=work)}", *(start or training.overrides)],
    )  # fmt: skip


def trained(name: str, seed: int, *, work: Path) -> Path:
    """The run of one training, gone on with or read back."""
    config = config_of(name, seed, work=work)
    run = Path(config.run.dir)
    if not (run / "audit.json").exists():
        with _with_objective(TRAININGS[name].objective):
            run_training(config, console=Console(quiet=True))
    return run


@contextmanager
def _with_objective(objective: Objective | None) -> Iterator[None]:
    """Training with another objective for the length of the block."""
    own = step.offset_target
    step.offset_target = objective or own
    try:
        yield
    finally:
        step.offset_target = own


def _base(training: Training, work: Path) -> Path:
    """The tiny base, or a copy of it with another schedule."""
    if not training.schedule:
        return TINY_BASE
    told = "_".join(f"{key}={value}" for key, value in training.schedule)
    folder = work / "bases" / told
    if not folder.exists():
        pipeline = load_pipeline(TINY_BASE, torch_dtype=torch.float32)
        pipeline.scheduler = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config, **dict(training.schedule)
        )
        beside = folder.with_name(f"{folder.name}.partial")
        pipeline.save_pretrained(beside)
        beside.rename(folder)
    return folder
