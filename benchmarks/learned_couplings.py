"""What learning a coupling gives: `python benchmarks/learned_couplings.py OUT [--run RUN]`

Learns two matrices for galleries of four on the tiny base: one for pictures as unlike each other as SSIM can
tell, one for two dark and two bright pictures. Measures both on prompts they never saw, on the tiny base and,
without learning again, on RUN's model from its start distribution; beside independent noise and the strongest
equal repulsion. A matrix that is there is not learned again. Prints tables, draws the correlation matrices.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from onbrand.data.studio import Product, draw_products
from onbrand.evaluation import compare, contact_sheet, pairwise_ssim, standard_error
from onbrand.evaluation.gallery_rewards import brightness_report, brightness_split, ssim_diversity
from onbrand.inference import load_pipeline
from onbrand.inference.correlation_picture import correlation_picture
from onbrand.inference.coupling_matrix import repulsive_matrix
from onbrand.inference.couplings import Independent, Repulsive
from onbrand.inference.generate import generate
from onbrand.inference.learned import LearnedCoupling
from onbrand.pca import Sampler
from onbrand.train.coupling import learn_coupling
from onbrand.train.models import TINY_BASE
from rich.console import Console
from rich.progress import Progress

IMAGES, SAMPLER, GUIDANCE = 4, Sampler("DDIMScheduler", 10), 3.0
REWARDS = {"ssim": ssim_diversity, "brightness": brightness_split()}
# all matrices whose noises sum to zero are nearly as good for SSIM: larger steps would wander among them
RATES = {"ssim": 0.01, "brightness": 0.05}
LEARNING_SEED, HELD_OUT_SEED = 41, 43


def products(count: int, seed: int, look: str) -> list[Product]:
    return [draw_products(np.random.default_rng([seed, i]), look)[0] for i in range(count)]


def learned(out: Path, pipeline: Any, name: str, *, steps: int, console: Console) -> LearnedCoupling:
    file = out / f"{name}.safetensors"
    if not file.exists():
        prompts = [product.words() for product in products(600, LEARNING_SEED, "wild")]
        began = time.perf_counter()
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task(name, total=steps)
            coupling = learn_coupling(
                pipeline, prompts, REWARDS[name], images=IMAGES, steps=steps, prompts_per_step=3,
                learning_rate=RATES[name], sampler=SAMPLER, guidance_scale=GUIDANCE, seed=LEARNING_SEED,
                advance=lambda count: progress.advance(bar, count),
            )  # fmt: skip
        coupling.save(file)
        first, last = np.mean(coupling.history[:20]), np.mean(coupling.history[-20:])
        seconds = time.perf_counter() - began
        console.print(f"{name}: {steps} steps in {seconds:.0f} s, reward {first:.4f} to {last:.4f}")
    return LearnedCoupling.load(file)


def held_out(
    pipeline: Any, noise: Any, *, prompts: int, on_brand: bool
) -> tuple[dict[str, list[float]], Any]:
    cast = products(prompts, HELD_OUT_SEED, "on-brand" if on_brand else "wild")
    pictures = generate(
        pipeline,
        [product.words() for product in cast],
        class_names=[product.kind for product in cast] if on_brand else None,
        count=IMAGES,
        noise=noise,
        sampler=SAMPLER,
        guidance_scale=2.0 if on_brand else GUIDANCE,
        seed=HELD_OUT_SEED,
    )
    galleries = [pictures[i : i + IMAGES] for i in range(0, len(pictures), IMAGES)]
    reports = [brightness_report(gallery) for gallery in galleries]
    values = {
        "SSIM": [pairwise_ssim(gallery) for gallery in galleries],
        "gap": [report.gap for report in reports],
        "contrast": [report.contrast for report in reports],
        "margin": [report.margin for report in reports],
    }
    return values, pictures[: 6 * IMAGES]


def main(
    out: Path,
    run: Annotated[Path | None, typer.Option(help="A finished run of the demo recipe")] = None,
    steps: int = 200,
    prompts: int = 100,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    base = load_pipeline(TINY_BASE)
    couplings = {name: learned(out, base, name, steps=steps, console=console) for name in REWARDS}
    matrices = {name: coupling.correlation for name, coupling in couplings.items()}
    for name, matrix in matrices.items():
        correlation_picture(matrix).save(out / f"{name}.png")
        console.print(name, np.array2string(matrix.numpy(), precision=3))
    repulsive = repulsive_matrix(IMAGES)
    distance = (matrices["ssim"] - repulsive @ repulsive.T).abs().max()
    console.print(f"largest entry of the SSIM matrix less the repulsive one: {float(distance):.3f}")
    noises = {"independent": Independent(), "repulsive (rho = -1/3)": Repulsive()}
    noises |= {f"learned for {name}": coupling for name, coupling in couplings.items()}
    models = {"tiny base": (base, False)}
    if run is not None:
        models["run, from its start distribution"] = (load_pipeline(run / "model"), True)
    for model, (pipeline, on_brand) in models.items():
        found, shown = {}, []
        for name, noise in noises.items():
            found[name], pictures = held_out(pipeline, noise, prompts=prompts, on_brand=on_brand)
            shown += pictures[: 2 * IMAGES]
        names = list(found["independent"])
        lines = [f"| {model} | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
        for name, values in found.items():
            cells = []
            for metric in names:
                gap = compare(values[metric], found["independent"][metric])
                error = standard_error(values[metric])
                told = "" if name == "independent" else f" (p {gap.p_value:.0e})"
                cells.append(f"{np.mean(values[metric]):.4f} ± {error:.4f}{told}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        text = "\n".join(lines) + "\n"
        (out / f"{model.split(',')[0].replace(' ', '_')}.md").write_text(text)
        console.print(text, soft_wrap=True)
        captions = [name for name in noises for _ in range(2 * IMAGES)]
        contact_sheet(shown, captions=captions, columns=2 * IMAGES).save(out / f"{model.split(',')[0]}.png")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
