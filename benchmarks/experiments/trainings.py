"""What is compared: ways to fine-tune the tiny base, ours and those that people use instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from onbrand.configs import load_config
from onbrand.configs.schema import Config
from onbrand.inference.load import load_pipeline
from onbrand.train import step
from onbrand.train.models import TINY_BASE
from onbrand.train.run import run_training
from onbrand.whole_file import whole
from rich.console import Console

from .catalogue import catalogue_folder
from .objectives import Objective, input_perturbation, multi_resolution, noise_offset, same_timesteps

PICTURES = 2000
RECIPE = (
    "train.steps=1500",
    "start.emphasis=0.15",  # unless a training says otherwise; the demo takes 30 % since
    "train.channels_last=true",
    "train.checkpoint_every=500",
    "train.preview_every=1500",
    "train.validate_every=500",
    "run.audit.pictures=16",
)
PLAIN = ("start.enabled=false", "start.emphasis=null")
KINDS: dict[str, tuple[str, ...]] = {"plain": PLAIN, "offset": ()}
RANKS = (4, 16, 64)
PICTURE_COUNTS = (20, 80, 320, 5000)
STEP_COUNTS = (100, 200, 400, 800)
SHORT_STEPS = 800  # of the trainings that are compared among themselves
SHORT = f"train.steps={SHORT_STEPS}"
RANGES = {
    "drawn uniformly": ("start.emphasis=null",),
    "30 % of timesteps": ("start.emphasis=0.3",),
    "from 900": ("start.offset_from=900",),
    "from 980": ("start.offset_from=980",),
}
LORA_KINDS = {**KINDS, "offset at 30%": RANGES["30 % of timesteps"]}
SHARES = (0.3, 0.5)  # of timesteps drawn from the offset range, in trainings of full length
LORA = (SHORT, "model.method=lora", "train.learning_rate=2.0e-3")
CONTROLNET = (
    SHORT,
    "model.method=frozen",
    "model.controlnet={condition: segment}",
    "train.learning_rate=2.0e-4",
)


@dataclass(frozen=True)
class Training:
    """The demo recipe with overrides.

    objective: in the place of `offset_target`; schedule: scheduler settings that the base is given first;
    pictures: of the catalogue; base: another training to begin with, None for the tiny base.
    """

    overrides: tuple[str, ...] = ()
    objective: Objective | None = None
    schedule: tuple[tuple[str, Any], ...] = ()
    pictures: int = PICTURES
    base: str | None = None


ZERO_SNR = (
    ("rescale_betas_zero_snr", True),
    ("prediction_type", "v_prediction"),
    ("timestep_spacing", "trailing"),
)
# d * alphas_cumprod[-1] = 1 with d = 1024, found by bisection of beta_end at the tiny base's beta_start
SMALL_LAST_ALPHA = (("beta_end", 0.016134),)

ALTERNATIVES = {
    # diffusers' .1, and what widens the mean of 16 x 16 latents as much as that does at 64 x 64
    **{f"noise offset {s}": Training(PLAIN, partial(noise_offset, strength=s)) for s in (0.1, 0.4)},
    "input perturbation": Training(PLAIN, input_perturbation),
    **{
        f"multi-resolution noise {d}": Training(PLAIN, partial(multi_resolution, discount=d))
        for d in (0.3, 0.8)
    },
    "zero terminal SNR": Training(PLAIN, schedule=ZERO_SNR),
}  # fmt: skip
TRAININGS = {
    "plain": Training(PLAIN),
    "offset": Training(),
    **{f"offset PCA-{n}": Training((f"start.components={n}",)) for n in (1, 3, 8)},
    **{f"offset at {share:.0%}": Training((f"start.emphasis={share}",)) for share in SHARES},
    "offset text PCA-8": Training(("start.family=text", "start.components=8")),
    "smaller a_T": Training(PLAIN, schedule=SMALL_LAST_ALPHA),
    "plain, same timesteps": Training(objective=same_timesteps),
    **ALTERNATIVES,
    **{f"{kind} LoRA {n}": Training((*LORA, f"model.lora.rank={n}", f"model.lora.alpha={n}", *overrides))
       for n in RANKS for kind, overrides in LORA_KINDS.items()},
    **{f"{kind} LoRA {n}, all layers": Training(
        (*LORA, f"model.lora.rank={n}", f"model.lora.alpha={n}", "model.lora.targets=[all]", *overrides))
       for n in RANKS for kind, overrides in LORA_KINDS.items() if kind != "plain"},
    **{f"{kind}, {n} pictures": Training((SHORT, *overrides), pictures=n)
       for n in PICTURE_COUNTS for kind, overrides in KINDS.items()},
    **{f"{kind}, {n} steps": Training((f"train.steps={n}", *overrides))
       for n in STEP_COUNTS for kind, overrides in KINDS.items()},
    **{f"offset, {told}": Training((SHORT, *overrides)) for told, overrides in RANGES.items()},
    **{f"{kind} ControlNet": Training((*CONTROLNET, *overrides), base=kind)
       for kind, overrides in KINDS.items()},
}  # fmt: skip


def config_of(name: str, seed: int, *, work: Path, start: Sequence[str] = ()) -> Config:
    """The config of one training, its run in WORK; start: overrides to fit another start to its pictures."""
    training = TRAININGS[name]
    run = work / "runs" / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"
    return load_config(
        "demo",
        [
            *RECIPE,
            f"model.base={_base(training, seed, work)}",
            f"run.seed={seed}",
            f"run.dir={run}",
            f"data.cache_dir={work / 'latents'}",
            f"data.source={catalogue_folder(training.pictures, work=work)}",
            *(start or training.overrides),
        ],
    )


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


def _base(training: Training, seed: int, work: Path) -> Path:
    """The tiny base, a copy of it with another schedule, or what an earlier training made of it."""
    if training.base:
        return trained(training.base, seed, work=work) / "model"
    if not training.schedule:
        return TINY_BASE
    told = "_".join(f"{key}={value}" for key, value in training.schedule)
    folder = work / "bases" / told
    if not folder.exists():
        pipeline = load_pipeline(TINY_BASE, torch_dtype=torch.float32)
        pipeline.scheduler = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config, **dict(training.schedule)
        )
        with whole(folder) as beside:
            pipeline.save_pretrained(beside)
    return folder
