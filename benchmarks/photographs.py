"""Real pictures: `python benchmarks/photographs.py BASE CATALOGUE --out OUT`

BASE is a base trained on photographs (`python -m onbrand.assets.photo_base`), CATALOGUE a catalogue with a
look. Fine-tunes the base on it twice, plainly and from the start distribution, with the same steps and seeds;
draws the same held-out captions with the same noises from each; prints how many pictures keep each rule, and
writes photographs.jpg with the pictures side by side. Finished runs are not repeated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from onbrand.configs import load_config
from onbrand.configs.schema import Config
from onbrand.evaluation import Limits
from onbrand.evaluation.audit import compare_table
from onbrand.inference.load import load_pipeline
from onbrand.train.draw import round_robin
from onbrand.train.judge import Audited, audit_held_out, audit_model, side_by_side
from onbrand.train.prepare import Prepared, prepare, split_catalogue
from onbrand.train.run import run_training
from onbrand.train.start import offset_start
from rich.console import Console

PLAIN = ("start.enabled=false", "start.emphasis=null")
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
    part = _prepared(config, pipeline).held_out
    audited = {"held-out catalogue": audit_held_out(part, pipeline.vae, limits=limits)}
    settings = config.run.audit.model_copy(update={"pictures": pictures})
    drawn = {
        "base": (base, "none"),
        "plain, pure noise": (runs["plain"] / "model", "none"),
        "plain, class mean": (runs["plain"] / "model", "mean"),
        "offset, class mean": (runs["offset"] / "model", "mean"),
    }
    for name, (model, start) in drawn.items():
        pipeline = load_pipeline(model)
        audited[name] = audit_model(pipeline, part, limits=limits, start=start, settings=settings, seed=1)
    Console().print(compare_table({name: found.report for name, found in audited.items()}))
    _sheet(audited, part).save(out / "photographs.jpg", quality=92)


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
