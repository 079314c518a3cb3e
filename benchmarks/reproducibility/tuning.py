"""Fine-tuning on few pictures: of the attention layers alone, of everything, and training from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models import DDIM, Denoiser, Model, noises, sample, train, trained
from onbrand.evaluation.reproducibility import gl_score, rp_score
from pictures import features, latents
from results import FEWER, GL_RATE, Results, calibration, seen, show, told
from safetensors.torch import load_file, save_file
from torch import Tensor

from train import BASE, of_size

FEW, STEPS, LEARNING_RATE = 64, 500, 1e-3
KINDS = ("attention layers", "everything")


def tuned(kind: str, seed: int, out: Path) -> Denoiser:
    """The base model, trained further on the first FEW pictures of the other set."""
    name = f"tuned-{kind.split()[0]}-seed{seed}"
    file, network = out / "models" / f"{name}.safetensors", trained(BASE, out)
    if not file.exists():
        for place, weight in network.named_parameters():
            weight.requires_grad_(kind == "everything" or ".attentions." in place)
        few = latents(out, "b", FEW)
        train(network, Model(seed=seed), few, work=out, name=name, steps=STEPS, learning_rate=LEARNING_RATE)
        save_file(network.state_dict(), file)
    network.load_state_dict(load_file(file))
    return network.requires_grad_(False)


def tuning(out: Path) -> None:
    """RP with the model they come from, GL against the few pictures."""
    results = Results(out, "tuning")
    same, copied = calibration(out).threshold, calibration(out, rate=GL_RATE).threshold
    base, few = seen(BASE, out, count=FEWER), features(latents(out, "b", FEW))

    def by(kind: str) -> Tensor:
        network = tuned(kind, 20, out)
        return features(sample(network, BASE.scheduler(), noises(FEWER), sampler=DDIM))

    def scores(ours: Tensor) -> dict[str, Any]:
        return {
            "RP with the base model": rp_score(ours, base, threshold=same),
            "GL": gl_score(ours, few, threshold=copied),
            "GL at RP's threshold": gl_score(ours, few, threshold=same),
        }

    rows = {"none (the base model)": results.measured("none", lambda: scores(base))}
    for kind in KINDS:
        rows[kind] = results.measured(kind, lambda kind=kind: scores(by(kind)))
    nothing = of_size(FEW)[2]
    rows["all, from nothing"] = results.measured(
        "from nothing", lambda: scores(seen(nothing, out, count=FEWER))
    )
    names = ("RP with the base model", "GL", "GL at RP's threshold")
    show(
        f"Fine-tuning on {FEW} pictures, {STEPS} steps, n = {FEWER}",
        ["trained", *names],
        [[row, *(told(found[name]) for name in names)] for row, found in rows.items()],
    )
    network = trained(BASE, out)
    attention = sum(w.numel() for place, w in network.named_parameters() if ".attentions." in place)
    print(f"attention layers: {attention / sum(w.numel() for w in network.parameters()):.1%} of the weights")
