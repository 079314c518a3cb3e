"""What each family of start distributions gives: `python benchmarks/families.py [SEED ...]`

Fine-tunes the tiny base with the demo recipe at an emphasis of .15, once for each way of starting the offset
range, and draws the same captions with the same noises from every start that fits. Prints the share of
pictures that keep all rules, and the background rule; of those whose product and colour are the caption's, by
the packaged classifier; and how far the product's mean colour is from the held-out picture's (CIEDE2000).
Finished runs are not repeated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onbrand.assets.classifier import COLOUR_NAMES
from onbrand.assets.gate import load_classifier, score
from onbrand.configs import load_config
from onbrand.configs.schema import Config
from onbrand.data.studio import Product
from onbrand.evaluation import Limits, contact_sheet
from onbrand.evaluation.look.foreground import product_mask
from onbrand.inference.load import load_pipeline
from onbrand.pca import StartDistribution
from onbrand.train.draw import round_robin
from onbrand.train.judge import audit_model
from onbrand.train.prepare import Prepared, prepare, split_catalogue
from onbrand.train.run import run_training
from onbrand.train.start import offset_start
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage.color import deltaE_ciede2000, rgb2lab

K = 8
PICTURES = 256
COLUMNS = ("all rules", "background", "class right", "colour right", "colour error")
RUNS = Path("runs/families")
SHARED = [
    "start.emphasis=0.15",
    "train.preview_every=900",
    "train.validate_every=900",
    "run.audit.pictures=16",
    f"data.cache_dir={RUNS}/latents",
]

FAMILIES = {
    "class mean": [],
    f"PCA-{K}": [f"start.components={K}"],
    "pooled": ["start.family=pooled"],
    f"pooled PCA-{K}": ["start.family=pooled", f"start.components={K}"],
    "diagonal": ["start.family=diagonal"],
    "DCT 4 x 4": ["start.family=dct", "start.band=4"],
    f"text PCA-{K}": ["start.family=text", f"start.components={K}"],
}


def drawn(self: StartDistribution, x_0: Any, class_ids: Any, *, text_embeds: Any = None) -> Any:
    """A draw given the text."""
    return self.sample(class_ids, text_embeds=text_embeds)


class Training(NamedTuple):
    """A run: the family it is fitted with, and what its offset range starts from if not `project`."""

    family: str
    project: Callable[..., Any] | None = None
    overrides: tuple[str, ...] = ()


TRAININGS = {
    "plain": Training("class mean", None, ("start.enabled=false", "start.emphasis=null")),
    "class mean": Training("class mean"),
    f"PCA-{K}, own projection": Training(f"PCA-{K}"),
    "DCT 4 x 4, own low band": Training("DCT 4 x 4"),
    "text, expected start": Training(f"text PCA-{K}"),
    "text, draw": Training(f"text PCA-{K}", drawn),
}
# training -> the family and the way to start from it
STARTS = [
    ("plain", "class mean", "none"),
    ("plain", "class mean", "mean"),
    ("plain", "diagonal", "draw"),
    ("plain", "DCT 4 x 4", "draw"),
    ("plain", f"text PCA-{K}", "mean"),
    ("class mean", "class mean", "mean"),
    ("class mean", "pooled", "draw"),
    (f"PCA-{K}, own projection", f"PCA-{K}", "draw"),
    (f"PCA-{K}, own projection", f"PCA-{K}", "mean"),
    (f"PCA-{K}, own projection", f"pooled PCA-{K}", "draw"),
    (f"PCA-{K}, own projection", f"text PCA-{K}", "mean"),
    (f"PCA-{K}, own projection", f"text PCA-{K}", "draw"),
    ("DCT 4 x 4, own low band", "DCT 4 x 4", "draw"),
    ("text, expected start", f"text PCA-{K}", "mean"),
    ("text, expected start", f"text PCA-{K}", "draw"),
    ("text, draw", f"text PCA-{K}", "mean"),
    ("text, draw", f"text PCA-{K}", "draw"),
]


@contextmanager
def starting_from(project: Callable[..., Any] | None) -> Iterator[None]:
    """Training with another x_start for the length of the block."""
    own = StartDistribution.project
    StartDistribution.project = project or own  # type: ignore[method-assign]
    try:
        yield
    finally:
        StartDistribution.project = own  # type: ignore[method-assign]


def config_of(family: str, name: str, seed: int, *overrides: str) -> Config:
    folder = RUNS / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
    return load_config(
        "demo", [*SHARED, *FAMILIES[family], f"run.seed={seed}", f"run.dir={folder}", *overrides]
    )


def fitted(family: str, seed: int, pipeline: Any) -> Prepared:
    config = config_of(family, family, seed)
    return prepare(
        config,
        pipeline,
        parts=split_catalogue(config),
        t_min=offset_start(pipeline, config.start),
        cache_dir=RUNS / "latents",
        device="cpu",
    )


def product_of(caption: str, kind: str) -> Product:
    words = caption.split()
    colour = next(name for name in COLOUR_NAMES if name in words)
    finish = next((word for word in words if word in ("striped", "dotted")), "plain")
    return Product(kind, colour, finish)


def colour_error(pictures: Sequence[Image.Image], meant: Sequence[Image.Image]) -> float:
    """Mean CIEDE2000 between the products' mean colours in pictures and in the held-out ones of the same
    captions; pairs of which one shows no product are left out."""
    pairs = [(mean_colour(a), mean_colour(b)) for a, b in zip(pictures, meant, strict=True)]
    return float(np.mean([deltaE_ciede2000(a, b) for a, b in pairs if a is not None and b is not None]))


def mean_colour(picture: Image.Image) -> np.ndarray | None:
    """The product's mean CIE Lab (3,), None without a product."""
    inside = np.asarray(product_mask(picture)) > 127
    return rgb2lab(np.asarray(picture.convert("RGB")))[inside].mean(axis=0) if inside.any() else None


def measure(training: str, family: str, start: str, seed: int) -> dict[str, float]:
    """Pass rates and accuracies of one training drawn from one start; kept beside the run."""
    wanted = TRAININGS[training]
    config = config_of(wanted.family, training, seed, *wanted.overrides)
    run = Path(config.run.dir)
    if not (run / "audit.json").exists():
        with starting_from(wanted.project):
            run_training(config, console=Console(quiet=True))
    kept = run / f"{family.replace(' ', '_')}_{start}.json"
    if not kept.exists() or COLUMNS[-1] not in json.loads(kept.read_text()):
        pipeline = load_pipeline(run / "model")
        prepared = fitted(family, seed, pipeline)
        pipeline.set_start_distribution(prepared.start_distribution)
        settings = config.run.audit.model_copy(update={"pictures": PICTURES})
        audited = audit_model(
            pipeline, prepared.held_out, limits=Limits.load(run / "limits.json"), start=start,
            settings=settings, seed=1000 + seed,
        )  # fmt: skip
        kinds = {picture.caption: picture.class_name for picture in prepared.held_out.catalogue.pictures}
        casts = [(product_of(prompt, kinds[prompt]),) for prompt in audited.prompts]
        pictures = np.stack([np.asarray(picture) for picture in audited.pictures])
        report, catalogue = audited.report, prepared.held_out.catalogue
        meant = [catalogue.image(row) for row in round_robin(catalogue, PICTURES, again=True)]
        values = {
            "all rules": report.pass_rate,
            "background": report.rules["background"],
            "uniformity": report.rules["uniformity"],
            **score(load_classifier(), pictures, casts),
            "colour error": colour_error(audited.pictures, meant),
        }
        contact_sheet(audited.pictures[:48], captions=audited.prompts[:48]).save(kept.with_suffix(".png"))
        kept.write_text(json.dumps(values))
    return json.loads(kept.read_text())


def main(seeds: list[int]) -> None:
    console = Console()
    table = Table(title=f"Demo recipe, {PICTURES} pictures a seed, seeds {seeds}")
    table.add_column("trained from")
    table.add_column("drawn from")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for training, family, start in STARTS:
        found = [measure(training, family, start, seed) for seed in seeds]
        cells = [float(np.mean([values[name] for values in found])) for name in COLUMNS]
        where = "pure noise" if start == "none" else f"{family}, {start}"
        table.add_row(training, where, *(f"{100 * cell:.1f} %" for cell in cells[:-1]), f"{cells[-1]:.1f}")
        console.print(training, where, *(f"{cell:.3f}" for cell in cells), sep=" | ")
    console.print(table)


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0])
