"""Reproducibility of inverse problems: DPS from shared noises, within an architecture and between two."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from models import noises, trained
from onbrand.evaluation.reproducibility import cosines, rp_score
from onbrand.inference.inverse_problems import Inpaint, decode, posterior_step
from pictures import SIDE, features, latents, vae
from results import Results, calibration, kept, mean_of, show, told
from rich.progress import track
from torch import Tensor

from train import APART, BASE, OTHER_TRANSFORMER

COUNT, STEPS = 16, 25
MODELS = {  # and the seed of their noises
    "UNet": (BASE, 0),
    "UNet, another seed": (APART["another seed"], 0),
    "transformer": (APART["a transformer"], 0),
    "transformer, another seed": (OTHER_TRANSFORMER, 0),
    "UNet, other noises": (BASE, 1),
}
LEFT_HALF = torch.arange(SIDE).expand(SIDE, SIDE) < SIDE // 2
PROBLEMS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "the right half": (Inpaint(LEFT_HALF), 0.3),
}


def solved(name: str, problem: str, out: Path) -> Tensor:
    """x_0 of COUNT held-out pictures' measurements."""
    model, seed = MODELS[name]
    operator, step_size = PROBLEMS[problem]

    def solve() -> Tensor:
        network, found = trained(model, out), []
        pictures = decode(vae(), latents(out, "held out", COUNT)).clamp(-1, 1)
        for x, picture in track(list(zip(noises(COUNT, seed), pictures, strict=True)), problem):
            scheduler = model.scheduler()
            scheduler.set_timesteps(STEPS)
            x, measurement = x[None], operator(picture[None])
            for timestep in scheduler.timesteps:
                x, _ = posterior_step(
                    x,
                    timestep,
                    scheduler=scheduler,
                    predict=lambda x, t: network(x, t, return_dict=False)[0],
                    measure=lambda x_0: operator(decode(vae(), x_0)),
                    measurement=measurement,
                    step_size=step_size,
                )
            found.append(x)
        return torch.cat(found)

    with torch.no_grad():
        return kept(out, f"dps-{problem}-{name}", solve)


def inverse(out: Path) -> None:
    """RP of all pairs of models; beside it how far the solutions are from the measurement and the picture."""
    vae().requires_grad_(False)
    for problem in PROBLEMS:
        _pairs(problem, out)
        _residuals(problem, out)


def _pairs(problem: str, out: Path) -> None:
    results, threshold = Results(out, "inverse"), calibration(out).threshold

    def seen(name: str) -> Tensor:
        return kept(out, f"dps-{problem}-{name}-features", lambda: features(solved(name, problem, out)))

    def agreement(ours: Tensor, theirs: Tensor) -> dict[str, Any]:
        return {"RP": rp_score(ours, theirs, threshold=threshold), "cosine": mean_of(cosines(ours, theirs))}

    rows = []
    for first, second in combinations(MODELS, 2):
        measure = partial(agreement, seen(first), seen(second))
        found = results.measured(f"{problem}: {first} and {second}", measure)
        rows.append([f"{first} and {second}", told(found["RP"]), told(found["cosine"])])
    show(f"DPS, {problem}, {STEPS} steps, n = {COUNT}", ["between", "RP", "cosine"], rows)


def _residuals(problem: str, out: Path) -> None:
    results, rows = Results(out, "inverse"), []
    for name in MODELS:
        measure = partial(_gaps, solved(name, problem, out), latents(out, "held out", COUNT), problem)
        found = results.measured(f"{problem}: {name}", measure)
        rows.append([name, told(found["measurement"]), told(found["picture"])])
    title = f"DPS, {problem}: root mean square error in pixels of [-1, 1]"
    show(title, ["model", "of the measurement", "of the picture"], rows)


@torch.no_grad()
def _gaps(x_0: Tensor, pictures: Tensor, problem: str) -> dict[str, Any]:
    operator, _ = PROBLEMS[problem]
    found, wanted = decode(vae(), x_0), decode(vae(), pictures).clamp(-1, 1)
    return {
        "measurement": mean_of((operator(found) - operator(wanted)).flatten(1).square().mean(1).sqrt()),
        "picture": mean_of((found - wanted).flatten(1).square().mean(1).sqrt()),
    }
