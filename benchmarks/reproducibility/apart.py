"""Models trained apart on the same pictures, and what must not agree: other pictures, other noises, VAEs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from models import DDIM, Model, noises, sample, trained
from onbrand.data.studio import CLASSES
from onbrand.evaluation.reproducibility import cosines, rp_between, rp_conditional, rp_score
from onbrand.pca import Sampler
from pictures import features, latents
from results import NOISES, Results, calibration, kept, mean_of, sampled, seen, sheet, show, told
from torch import Tensor
from vaes import CODE, trained_vae

from train import APART, BASE, CLASSES_TOLD, OTHER_LOOK, OTHER_PICTURES, OTHER_TRANSFORMER

SAMPLERS = {
    "DPM-Solver++, 25 steps": Sampler("DPMSolverMultistepScheduler", 25),
    "Heun, 25 steps": Sampler("HeunDiscreteScheduler", 25),
    "DDIM, 200 steps": Sampler("DDIMScheduler", 200),
}
CLASS_NOISES = 64


def agreement(ours: Tensor, theirs: Tensor, threshold: float) -> dict[str, Any]:
    """RP at the calibrated threshold and at the papers', and the mean cosine."""
    return {
        "RP": rp_score(ours, theirs, threshold=threshold),
        "RP at 0.6": rp_score(ours, theirs),
        "cosine": mean_of(cosines(ours, theirs)),
    }


def apart(out: Path) -> None:
    """Pairs with the base model, from shared noises."""
    threshold, results = calibration(out).threshold, Results(out, "apart")
    base = seen(BASE, out)
    rows = {}

    def measured(row: str, make: Any) -> None:
        rows[row] = results.measured(row, lambda: agreement(base, make(), threshold))

    for name, model in APART.items():
        measured(name, lambda model=model: seen(model, out))
    measured("linear schedule, begun where the base model begins", lambda: _begun_later(out))
    for name, sampler in SAMPLERS.items():
        measured(f"the same model, {name}", lambda sampler=sampler: seen(BASE, out, sampler=sampler))
    ours, theirs = (seen(model, out) for model in (APART["a transformer"], OTHER_TRANSFORMER))
    pair = "two transformers with each other"
    rows[pair] = results.measured(pair, lambda: agreement(ours, theirs, threshold))
    measured("other pictures of the same kind", lambda: seen(OTHER_PICTURES, out))
    measured("pictures of the other look", lambda: seen(OTHER_LOOK, out))
    measured("the same model, other noises", lambda: base.roll(1, 0))
    _table(f"RP with the base model, n = {NOISES}", rows)
    models = {"the base model": BASE, **APART, "other pictures": OTHER_PICTURES, "other look": OTHER_LOOK}
    sheet({name: sampled(model, out) for name, model in models.items()}).save(out / "apart.jpg", quality=88)


def _begun_later(out: Path) -> Tensor:
    """The other schedule's model without the timesteps noisier than the base model's first, described."""
    model, begins = APART["linear schedule"], BASE.scheduler()
    begins.set_timesteps(DDIM.steps)
    power = begins.alphas_cumprod[begins.timesteps[0]]
    whole = model.scheduler()
    first = int((whole.alphas_cumprod - power).abs().argmin())
    betas = whole.betas[: first + 1].tolist()
    schedule = DDIMScheduler.from_config(whole.config, trained_betas=betas, num_train_timesteps=len(betas))
    sampler = Sampler("DDIMScheduler", DDIM.steps, "trailing")
    return features(sample(trained(model, out), schedule, noises(NOISES), sampler=sampler))


def autoencoders(out: Path) -> None:
    """Two VAEs from shared codes."""
    threshold, results = calibration(out).threshold, Results(out, "autoencoders")
    x_0s = latents(out, BASE.pictures, BASE.count)
    vaes = [trained_vae(seed, x_0s, out) for seed in (0, 1)]
    codes = torch.randn(NOISES, CODE, generator=torch.Generator().manual_seed(0))
    first, second = (
        kept(out, f"vae{i}-features", lambda vae=vae: features(vae.decoder(codes)))
        for i, vae in enumerate(vaes)
    )
    held = latents(out, "held out", NOISES)
    again = kept(
        out, "vae0-held-features", lambda: features(vaes[0].decoder(vaes[0].encoder(held)[:, :CODE]))
    )
    rows = {}
    for row, (ours, theirs) in {
        "two VAEs, the same codes": (first, second),
        "one VAE, other codes": (first, first.roll(1, 0)),
        "one VAE, held-out pictures and their reconstructions": (features(held), again),
    }.items():
        rows[row] = results.measured(row, lambda ours=ours, theirs=theirs: agreement(ours, theirs, threshold))
    _table(f"VAEs trained apart, n = {NOISES}", rows)


def with_classes(out: Path) -> None:
    """RP_cond of two models that are told the class, RP_between of the base model and each."""
    threshold, results = calibration(out).threshold, Results(out, "classes")
    eps = noises(CLASS_NOISES)

    def of_classes(model: Model) -> Tensor:
        """(classes, n, D), every class from the same noises."""
        network = trained(model, out)
        labels = torch.arange(len(CLASSES)).repeat_interleave(CLASS_NOISES)
        x_0 = sample(
            network, model.scheduler(), eps.repeat(len(CLASSES), 1, 1, 1), sampler=DDIM, labels=labels
        )
        return features(x_0).unflatten(0, (len(CLASSES), CLASS_NOISES))

    first, second = (
        kept(out, f"{model.name}-by-class", lambda model=model: of_classes(model)) for model in CLASSES_TOLD
    )
    base = seen(BASE, out)[:CLASS_NOISES]
    scores = results.measured(
        "classes",
        lambda: {
            "RP_cond": rp_conditional(first, second, threshold=threshold),
            "RP_cond, classes exchanged": rp_conditional(first, second.roll(1, 0), threshold=threshold),
            "RP_cond, noises exchanged": rp_conditional(first, second.roll(1, 1), threshold=threshold),
            "RP_between": rp_between(base, first, threshold=threshold),
            "RP_between, noises exchanged": rp_between(base, first.roll(1, 1), threshold=threshold),
            "RP_cond at 0.6": rp_conditional(first, second),
            "RP_cond, classes exchanged at 0.6": rp_conditional(first, second.roll(1, 0)),
            "RP_cond, noises exchanged at 0.6": rp_conditional(first, second.roll(1, 1)),
            "RP_between at 0.6": rp_between(base, first),
            "RP_between, noises exchanged at 0.6": rp_between(base, first.roll(1, 1)),
        },
    )
    names = [name for name in scores if name.startswith("RP") and not name.endswith("0.6")]
    rows = [[name, told(scores[name]), told(scores[f"{name} at 0.6"])] for name in names]
    show(f"Classes: {len(CLASSES)}, n = {CLASS_NOISES} noises", ["score", "calibrated", "at 0.6"], rows)


def _table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    names = ("RP", "RP at 0.6", "cosine")
    show(
        title,
        ["with", *names],
        [[row, *(told(found[name]) for name in names)] for row, found in rows.items()],
    )
