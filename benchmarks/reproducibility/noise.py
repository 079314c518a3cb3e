"""Inversion recovers the noise: DDIM forwards, then backwards, over the number of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from chart import line_chart
from diffusers import DDPMPipeline
from models import noises, trained
from onbrand.inference.closed_form import OptimalDenoiser
from onbrand.inference.inversion import DdimMap
from onbrand.pca import Sampler
from pictures import SHAPE, class_ids, latents
from results import Results, mean_of, show, told

from train import BASE, MEMORISING

STEPS, COUNT = (10, 20, 50, 100, 200), 16
REFINEMENTS = (0, 2)


def inversion(out: Path) -> None:
    """The error of the noise found, as a share of its norm; and of the picture that it leads back to."""
    results, rows = Results(out, "inversion"), {}
    x_0s = latents(out, "a", 64)
    networks: dict[str, Any] = {
        "base model": lambda: trained(BASE, out),
        "transformer of 64 pictures": lambda: trained(MEMORISING, out),
        "exact denoiser of 64": lambda: OptimalDenoiser([(x_0s, class_ids(64))], BASE.scheduler()),
    }
    for name, network in networks.items():
        for refinements in REFINEMENTS:
            for steps in STEPS:
                rows[name, refinements, steps] = results.measured(
                    f"{name}, {refinements} refinements, {steps} steps",
                    lambda network=network, steps=steps, refinements=refinements: _round_trip(
                        network(), steps=steps, refinements=refinements
                    ),
                )
    kinds = [(name, refinements) for name in networks for refinements in REFINEMENTS]
    for what in ("noise", "picture"):
        show(
            f"Relative error of the {what} after inversion, n = {COUNT}",
            ["network, refinements a step", *(f"{steps} steps" for steps in STEPS)],
            [[f"{name}, {r}", *(told(rows[name, r, s][what], 4) for s in STEPS)] for name, r in kinds],
        )
    line_chart(
        {
            f"{name}, {r} refinements": [
                (i, rows[name, r, s]["noise"]["value"], rows[name, r, s]["noise"]["standard_error"])
                for i, s in enumerate(STEPS)
            ]
            for name, r in kinds
        },
        title="Noise found by inversion: relative error",
        places=list(map(str, STEPS)),
        below="DDIM steps, forwards and backwards",
    ).save(out / "inversion.png")


@torch.no_grad()
def _round_trip(network: Any, *, steps: int, refinements: int) -> dict[str, Any]:
    pipeline = DDPMPipeline(unet=network, scheduler=BASE.scheduler())
    way = DdimMap(
        pipeline, [""] * COUNT, height=SHAPE[1], width=SHAPE[2], sampler=Sampler("DDIMScheduler", steps)
    )
    eps = noises(COUNT)
    x_0 = way(eps)
    found = way.invert(x_0, refinements=refinements)
    return {"noise": _relative(found, eps), "picture": _relative(way(found), x_0)}


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    gap = (found - wanted).double().flatten(1).norm(dim=1)
    return mean_of(gap / wanted.double().flatten(1).norm(dim=1))
