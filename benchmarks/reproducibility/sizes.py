"""From memorising to generalising: RP and GL over the number of training pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from chart import line_chart
from models import DDIM, Model, noises, sample, trained
from onbrand.evaluation.reproducibility import gl_score, nearest, rp_score
from onbrand.inference.closed_form import OptimalDenoiser
from pictures import HELD_OUT, class_ids, features, latents
from results import (
    FEWER,
    GL_RATE,
    Results,
    calibration,
    kept,
    mean_of,
    of_pictures,
    sampled,
    seen,
    sheet,
    show,
    told,
)
from torch import Tensor

from train import BY_HEART, MEMORISING, SIZES, TWICE, of_size


def exact(model: Model, out: Path) -> Tensor:
    """x_0 of the shared noises, drawn by the exact denoiser of the model's training pictures."""

    def draw() -> Tensor:
        x_0s = latents(out, model.pictures, model.count)
        denoiser = OptimalDenoiser([(x_0s, class_ids(model.count))], model.scheduler())
        return sample(denoiser, model.scheduler(), noises(FEWER), sampler=DDIM)

    return kept(out, f"exact-{model.pictures}-{model.count}", draw)


def exact_seen(model: Model, out: Path) -> Tensor:
    name = f"exact-{model.pictures}-{model.count}-features"
    return kept(out, name, lambda: features(exact(model, out)))


def reproduction(x_0: Tensor, x_0s: Tensor) -> dict[str, Any]:
    """How near samples are to the nearest training latents.

    within 10 %: the share whose distance is below 10 % of that one's norm; PSNR: 20 log10 of the training
    latents' range over the root mean square error.
    """
    places, found = nearest(x_0.flatten(1), x_0s.flatten(1), 1)
    gap = x_0.double() - x_0s.double()[torch.from_numpy(places[:, 0])]
    error = gap.square().flatten(1).mean(1).sqrt()
    size = x_0s.double()[torch.from_numpy(places[:, 0])].square().flatten(1).mean(1).sqrt()
    peak = float(x_0s.max() - x_0s.min())
    return {
        "within 10 %": mean_of((error / size < 0.1).double()),
        "cosine": mean_of(found[:, 0]),
        "PSNR": mean_of(20 * torch.log10(peak / error)),
        "different pictures": len(np.unique(places)),
    }


def sizes(out: Path) -> None:
    """RP of two models on the same pictures and on disjoint ones, RP with the exact denoiser, GL."""
    results = Results(out, "sizes")
    same = calibration(out).threshold
    copied = calibration(out, rate=GL_RATE).threshold
    held = of_pictures(out, "held out", HELD_OUT)
    rows = {}
    for count in SIZES:
        models = of_size(count)

        def measure(models: tuple[Model, ...] = models, count: int = count) -> dict[str, Any]:
            first, elsewhere = (seen(model, out, count=FEWER) for model in models[::2])
            again = {}
            if count in (*TWICE, SIZES[-1]):
                again["RP, same pictures"] = rp_score(
                    first, seen(models[1], out, count=FEWER), threshold=same
                )
            taught = of_pictures(out, "a", count)
            return {
                **again,
                "RP, disjoint pictures": rp_score(first, elsewhere, threshold=same),
                "RP with the exact denoiser": rp_score(first, exact_seen(models[0], out), threshold=same),
                "GL": gl_score(first, taught, threshold=copied),
                "GL at RP's threshold": gl_score(first, taught, threshold=same),
                "GL of held-out pictures": gl_score(held, taught, threshold=copied),
            }

        rows[count] = results.measured(str(count), measure)
    names = [name for name in rows[SIZES[0]] if name not in ("study", "row")]
    show(
        f"RP (cosine above {same:.3f}) and GL (above {copied:.3f}) over training pictures, n = {FEWER}",
        ["", *map(str, SIZES)],
        [[name, *(told(rows[count].get(name)) for count in SIZES)] for name in names],
    )
    line_chart(
        {
            name: [(i, rows[count][name]["value"], rows[count][name]["standard_error"])
                   for i, count in enumerate(SIZES) if name in rows[count]]
            for name in names
            if name != "GL at RP's threshold"
        },
        title="Two regimes",
        places=list(map(str, SIZES)),
        below="training pictures",
    ).save(out / "two_regimes.png")  # fmt: skip


@torch.no_grad()
def losses(model: Model, out: Path) -> dict[str, float]:
    """Mean squared error of eps on the same 1,024 noisy latents, of the network and of the exact denoiser."""
    x_0s, scheduler = latents(out, model.pictures, model.count), model.scheduler()
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(model.count, (1024,), generator=generator)
    noise = torch.randn(1024, *x_0s.shape[1:], generator=generator)
    timesteps = torch.arange(1024) * 1000 // 1024
    noisy = scheduler.add_noise(x_0s[rows], noise, timesteps)
    denoisers = {
        "network": trained(model, out),
        "exact denoiser": OptimalDenoiser([(x_0s, class_ids(model.count))], scheduler),
    }
    return {
        name: float((denoiser(noisy, timesteps).sample - noise).square().mean())
        for name, denoiser in denoisers.items()
    }


def memorised(out: Path) -> None:
    """The exact denoiser draws training pictures; a network that knows 64 by heart draws the same ones."""
    results, rows = Results(out, "memorised"), {}
    for count in SIZES:
        model = of_size(count)[0]
        rows[f"exact denoiser of {count}"] = results.measured(
            f"exact {count}",
            lambda model=model: reproduction(exact(model, out), latents(out, "a", model.count)),
        )
    names = ("within 10 %", "cosine", "PSNR")
    show(
        f"The exact denoiser's pictures and the nearest training latents, n = {FEWER}",
        ["", *names, "training pictures drawn"],
        [
            [row, *(told(found[name]) for name in names), str(found["different pictures"])]
            for row, found in rows.items()
        ],
    )
    same, copied = calibration(out).threshold, calibration(out, rate=GL_RATE).threshold
    rows = {}
    networks = {f"UNet, {count} pictures": of_size(count)[0] for count in SIZES}
    networks["transformer, 64 pictures"] = MEMORISING
    networks[f"wide UNet, 64 pictures, {BY_HEART.steps} steps"] = BY_HEART
    for row, model in networks.items():

        def measure(model: Model = model) -> dict[str, Any]:
            ours, exactly = seen(model, out, count=FEWER), exact_seen(model, out)
            return {
                "RP": rp_score(ours, exactly, threshold=same),
                "RP, strict": rp_score(ours, exactly, threshold=copied),
                "RP, other noises": rp_score(ours, exactly.roll(1, 0), threshold=same),
                "GL": gl_score(ours, of_pictures(out, "a", model.count), threshold=copied),
            }

        rows[row] = results.measured(row, measure)
    drawn = {"exact denoiser": exact(MEMORISING, out), "transformer": sampled(MEMORISING, out, count=FEWER)}
    drawn["UNet"] = sampled(of_size(64)[0], out, count=FEWER)
    drawn[f"UNet, {BY_HEART.steps} steps"] = sampled(BY_HEART, out, count=FEWER)
    sheet(drawn).save(out / "memorised.jpg", quality=88)
    names = ("RP", "RP, strict", "RP, other noises", "GL")
    show(
        f"Networks and the exact denoiser of their training pictures, n = {FEWER}",
        ["network", *names],
        [[row, *(told(found[name]) for name in names)] for row, found in rows.items()],
    )
    few = {row: model for row, model in networks.items() if model.count <= 64}
    found = {
        row: results.measured(f"loss: {row}", lambda model=model: losses(model, out))
        for row, model in few.items()
    }
    names = ("network", "exact denoiser")
    show(
        "Loss on the training pictures, n = 1024",
        ["", *names],
        [[row, *(f"{line[name]:.4f}" for name in names)] for row, line in found.items()],
    )
