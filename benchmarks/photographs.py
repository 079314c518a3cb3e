"""Real pictures: `python benchmarks/photographs.py BASE CATALOGUE --out OUT`

BASE is a base trained on photographs (`python -m onbrand.assets.photo_base`), CATALOGUE a catalogue with a
look. Fine-tunes the base on it twice, plainly and from the start distribution, with the same steps and seeds;
draws the same captions, held out and of the catalogue, with the same noises from each; prints how many
pictures keep each rule, and writes photographs.jpg with those of held-out captions. Finished runs are not
repeated.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Annotated

import numpy as np
import typer
from onbrand.configs import load_config
from onbrand.configs.schema import Config
from onbrand.evaluation import Limits
from onbrand.evaluation.audit import compare_table
from onbrand.evaluation.paired import compare, standard_error
from onbrand.inference.load import load_pipeline, to_draw
from onbrand.train.draw import round_robin
from onbrand.train.judge import Audited, audit_held_out, audit_model, side_by_side
from onbrand.train.prepare import Prepared, prepare, split_catalogue
from onbrand.train.run import run_training
from onbrand.train.start import offset_start
from rich.console import Console

PLAIN = ("start.enabled=false", "start.emphasis=null")
PLAIN_MEAN, OFFSET_MEAN = "plain, class mean", "offset, class mean"
SHOWN = 8


def main(
    base: Path,
    catalogue: str,
    out: Annotated[Path, typer.Option(help="Keeps the two runs; gets the picture")],
    steps: int = 1500,
    pictures: int = 256,
) -> None:
    """See the top of the file."""
    shared = [
        f"model.base={base}",
        f"data.source={catalogue}",
        f"data.cache_dir={out / 'latents'}",
        f"train.steps={steps}",
        "train.channels_last=true",
        f"train.preview_every={steps}",
        "run.audit.pictures=16",
    ]
    runs = {name: out / name for name in ("plain", "offset")}
    for name, run in runs.items():
        config = load_config("quickstart", [*shared, f"run.dir={run}", *(PLAIN if name == "plain" else ())])
        run_training(config, console=Console())
    limits = Limits.load(runs["offset"] / "limits.json")
    pipeline = load_pipeline(runs["offset"] / "model")
    parts = _prepared(config, pipeline)
    settings = config.run.audit.model_copy(update={"pictures": pictures})
    models = {
        "base": (base, "none"),
        "plain, pure noise": (runs["plain"] / "model", "none"),
        PLAIN_MEAN: (runs["plain"] / "model", "mean"),
        OFFSET_MEAN: (runs["offset"] / "model", "mean"),
    }
    for title, part in {
        "captions held out": parts.held_out,
        "captions of the catalogue": parts.train,
    }.items():
        audited = {"real pictures": audit_held_out(part, pipeline.vae, limits=limits)}
        for name, (model, start) in models.items():
            drawing = to_draw(load_pipeline(model), "cpu")
            audited[name] = audit_model(drawing, part, limits=limits, start=start, settings=settings, seed=1)
        table = compare_table({name: found.report for name, found in audited.items()}, title=title)
        rates = {name: 100 * np.array(_rates(audited[name])) for name in models}
        test = compare(rates[OFFSET_MEAN], rates[PLAIN_MEAN])
        Console().print(
            table,
            "on brand, every caption counting once:",
            *(f"  {name}: {own.mean():.1f} ± {standard_error(own):.1f} %" for name, own in rates.items()),
            f"{OFFSET_MEAN} less {PLAIN_MEAN}: {test.difference:.1f} ± {test.standard_error:.1f} "
            f"points over {test.n} captions, p {test.p_value:.3f}",
            sep="\n",
        )
        if part is parts.held_out:
            _sheet(audited, part).save(out / "photographs.jpg", quality=92)


def _rates(found: Audited) -> list[float]:
    """The pass rate of each caption, in the order of the captions."""
    kept: dict[str, list[bool]] = {caption: [] for caption in sorted(found.prompts)}
    for caption, passed in zip(found.prompts, found.report.passed, strict=True):
        kept[caption].append(passed)
    return [fmean(passed) for passed in kept.values()]


def _prepared(config: Config, pipeline: object) -> Prepared:
    """The catalogue as the runs read it."""
    return prepare(
        config,
        pipeline,
        parts=split_catalogue(config),
        t_min=offset_start(pipeline, config.start),
        cache_dir=Path(str(config.data.cache_dir)),
        device="cpu",
    )


def _sheet(audited: dict[str, Audited], part: object):  # type: ignore[no-untyped-def]
    """The first captions' pictures: the real one, then each model's."""
    real, *models = audited.items()
    rows = round_robin(part.catalogue, SHOWN, again=True)
    shown = {"catalogue": [real[1].pictures[row] for row in rows]}
    return side_by_side(shown | {name: found.pictures for name, found in models}, columns=SHOWN)


if __name__ == "__main__":
    typer.run(main)
