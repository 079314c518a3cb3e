"""Is the tiny base a fit laboratory? `python -m onbrand.assets.gate --base BASE --work WORK --out OUT`

Measures whether prompts control kind and colour, whether two-product prompts show both, and whether the base
leaks as Stable Diffusion does: 800 steps of plain fine-tuning on white must fail from pure noise and work
from the class mean. Writes gate.json and sample_sheet.png.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file

from ..configs import load_config
from ..data.studio import CLASSES, Product, Shot, draw_products
from ..evaluation import contact_sheet
from ..inference.generate import generate
from ..inference.load import load_pipeline
from ..pca import Sampler
from .classifier import COLOUR_NAMES, ProductClassifier, read, train_classifier
from .pictures import draw

CLASSIFIER = Path(__file__).with_name("classifier.safetensors")
HELD_OUT_SEED = 99
LEAK_STEPS = 800


def gate(
    base: Annotated[Path, typer.Option(help="The diffusers folder to judge")],
    work: Annotated[Path, typer.Option(help="Keeps the classifier and the leak test's run")],
    out: Annotated[Path, typer.Option(help="Where gate.json and sample_sheet.png go")],
    guidance_scale: float = 3.0,
    prompts: int = 256,
    leak: Annotated[bool, typer.Option(help="Also run the 800-step leak test")] = True,
) -> None:
    """Prints and writes what the base can do."""
    out.mkdir(parents=True, exist_ok=True)
    if not CLASSIFIER.exists():
        save_file(train_classifier(work=work).state_dict(), CLASSIFIER)
    classifier = load_classifier()
    pipeline = load_pipeline(base, torch_dtype=torch.float32)
    result: dict[str, Any] = {
        "guidance_scale": guidance_scale,
        "sampler": "DDIM, 50 steps",
        "prompts": prompts,
    }
    result["classifier on real pictures"] = _scores(
        classifier,
        [Shot("wild", 64, HELD_OUT_SEED, i, (product,)) for i, product in enumerate(_products(prompts, 1))],
    )
    sheets: list[Image.Image] = []
    captions: list[str] = []
    for name, count in (("one product", 1), ("two products", 2)):
        casts = _casts(prompts, count)
        pictures = generate(
            pipeline,
            [" and ".join(product.words() for product in cast) for cast in casts],
            sampler=Sampler("DDIMScheduler", 50),
            guidance_scale=guidance_scale,
        )
        result[name] = score(classifier, np.stack([np.asarray(picture) for picture in pictures]), casts)
        sheets += pictures[:24]
        captions += [" and ".join(product.words() for product in cast) for cast in casts[:24]]
    contact_sheet(sheets, captions=captions).save(out / "sample_sheet.png")
    if leak:
        result["leak"] = _leak(base, work)
    (out / "gate.json").write_text(json.dumps(result, indent=1) + "\n")
    typer.echo(json.dumps(result, indent=1))


def score(
    classifier: ProductClassifier, pictures: np.ndarray, casts: list[tuple[Product, ...]]
) -> dict[str, float]:
    """Share of pictures that show every product asked for, and of products shown whose colour is right.

    One product: the most likely kind must be the one asked for. Several: each must be present at p > 0.5.
    """
    present, colours = read(classifier, pictures)
    right, colour_right, both = 0, 0, 0
    asked = sum(map(len, casts))
    for row, cast in enumerate(casts):
        kinds = [CLASSES.index(product.kind) for product in cast]
        found = present[row].topk(len(kinds)).indices.tolist() if len(kinds) == 1 else [
            k for k in kinds if present[row, k] > 0.5
        ]  # fmt: skip
        right += sum(k in found for k in kinds)
        both += all(k in found for k in kinds)
        colour_right += sum(
            COLOUR_NAMES[int(colours[row, kind])] == product.colour
            for kind, product in zip(kinds, cast, strict=True)
        )
    return {
        "class right": round(right / asked, 4),
        "colour right": round(colour_right / asked, 4),
        "all shown": round(both / len(casts), 4),
    }


def _casts(count: int, products: int) -> list[tuple[Product, ...]]:
    """`count` casts of exactly so many products."""
    casts: list[tuple[Product, ...]] = []
    index = 0
    while len(casts) < count:
        cast = draw_products(np.random.default_rng([HELD_OUT_SEED, products, index]), "wild")
        index += 1
        if len(cast) == products:
            casts.append(cast)
    return casts


def _products(count: int, products: int) -> list[Product]:
    return [cast[0] for cast in _casts(count, products)]


def _scores(classifier: ProductClassifier, shots: list[Shot]) -> dict[str, float]:
    return score(classifier, draw(shots), [shot.cast() for shot in shots])


def load_classifier() -> ProductClassifier:
    """The packaged classifier."""
    model = ProductClassifier()
    model.load_state_dict(load_file(CLASSIFIER))
    return model.eval()


def _leak(base: Path, work: Path) -> dict[str, Any]:
    """Border rules kept after plain fine-tuning, from pure noise and from the class mean."""
    from rich.console import Console

    from ..train.run import run_training

    config = load_config(
        "quickstart",
        [f"model.base={base}", f"run.dir={work / 'leak'}", "start.enabled=false", "start.emphasis=null",
         f"train.steps={LEAK_STEPS}", "train.learning_rate=3.0e-4", "train.ema_decay=0.99",
         "train.preview_every=800"],
    )  # fmt: skip
    run = run_training(config, console=Console())
    found = {}
    for name in ("from_pure_noise", "from_start_distribution"):
        pictures = json.loads((run / "audits" / f"{name}.json").read_text())["pictures"]
        broken = [{failure["rule"] for failure in picture["failures"]} for picture in pictures]
        found[name] = round(
            sum(not rules & {"background", "uniformity"} for rules in broken) / len(broken), 4
        )
    return {"plain fine-tuning steps": LEAK_STEPS, "border rules passed": found}


if __name__ == "__main__":
    typer.run(gate)
