"""Do two specialists draw what neither can? `python benchmarks/aggregation.py MODELS OUT [--part main]`

MODELS is the folder of benchmarks/aggregation_models.py. Layouts of two to six products, each with a box,
kind and colour: `shapes` is shown boxes and kinds, `colours` a spot of colour near every centre. The packaged
studio detector tells which instances are there (IoU above .5, right kind and colour). Parts: settings (number
of aggregated steps, weights, step sizes, ways to combine) on layouts of their own; lengths (how alike the
models are); main; three models. What is in OUT/PART.jsonl is not drawn again. Prints tables with standard
errors over pictures, draws a sheet.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from aggregation_models import Instances, condition_of, instances_of, prompt_of
from aggregation_tables import COUNTS, PAIR, SEED, hits, percent, rate, sheet, table, table_by_count
from onbrand.assets.crowded_scenes import crowded_scenes
from onbrand.assets.studio_detector import StudioDetector, load_studio_detector
from onbrand.data.studio import Product
from onbrand.evaluation.detection import Detection
from onbrand.inference import AggregatedPipeline, load_pipeline
from onbrand.inference.aggregation.step import combine
from onbrand.inference.generate import build_sampler
from onbrand.pca import Sampler
from onbrand.train.models import TINY_BASE
from PIL import Image
from rich.console import Console
from rich.progress import track

STEPS, BATCH = 10, 32
TRIED_FROM = 10_000  # the layouts that settings are tried on are none of those they are judged on


class Way(NamedTuple):
    """How a picture is drawn; weights and step sizes None: the paper's; steps 0: by the first model alone."""

    models: tuple[str, ...] = PAIR
    steps: int = 3
    weights: tuple[float, ...] | None = None
    step_sizes: tuple[float, ...] | None = None
    kind: str = "nested"
    sampler: str = "DDPM"


class Drawn(NamedTuple):
    """Pictures of one way, what was found on them, and the median CPU seconds of one in a batch."""

    pictures: list[Image.Image]
    detections: list[list[Detection]]
    seconds: float


def layouts(count: int, *, first: int) -> tuple[list[Image.Image], list[Instances]]:
    """Real pictures of two to six products in turn, and what is where on them."""
    scenes = crowded_scenes(
        range(first, first + count), (COUNTS[i % len(COUNTS)] for i in range(count)), seed=SEED
    )
    return [scene.picture for scene in scenes], [instances_of(scene) for scene in scenes]


def call_of(model: str, part: Sequence[Instances], first: int) -> dict[str, Any]:
    """The arguments of one model for these layouts; `words` and `told` read the whole prompt."""
    if model in ("words", "told"):
        words = [[Product(kind, colour).words() for kind, colour, _ in one] for one in part]
        call: dict[str, Any] = {"prompt": [" and ".join(one) for one in words]}
    else:
        call = {"prompt": [prompt_of(model, one) for one in part]}
    if model != "words":
        name = "shapes" if model == "told" else model
        call["image"] = [condition_of(name, one, seed=(SEED, first + i)) for i, one in enumerate(part)]
    return call


def draw(
    pipelines: dict[str, Any], way: Way, asked: Sequence[Instances], detector: StudioDetector, *,
    first: int, guidance: float, title: str,
) -> Drawn:  # fmt: skip
    """A picture of every layout, each from the noise of its own seed."""
    members = [pipelines[model] for model in way.models]
    with_sampler(pipelines, way.models, way.sampler)
    together = None
    if way.steps:
        together = AggregatedPipeline(members, way.weights, way.steps, way.step_sizes, kind=way.kind)
    pictures, seconds = [], []
    for at in track(range(0, len(asked), BATCH), title, transient=True):
        part = asked[at : at + BATCH]
        calls = [call_of(model, part, first + at) for model in way.models]
        generator = [torch.Generator().manual_seed(SEED * 100_000 + first + at + i) for i in range(len(part))]
        shared = {"num_inference_steps": STEPS, "guidance_scale": guidance, "generator": generator}
        began = time.process_time()
        result = members[0](**calls[0], **shared) if together is None else together(calls=calls, **shared)
        seconds.append((time.process_time() - began) / len(part))
        pictures += result.images
    return Drawn(pictures, detector(pictures), statistics.median(seconds))


def ways_of(part: str, best: Way) -> dict[str, Way]:
    """The rows of a part's table; best: the settings that the tried layouts spoke for."""
    if part == "main":
        return {
            "shapes": Way(("shapes",), 0),
            "colours": Way(("colours",), 0),
            "shapes, colours in its prompt": Way(("told",), 0),
            "shapes + colours": best,
            "shapes + colours, the paper's settings": Way(),
            "shapes + itself, the paper's settings": Way(("shapes", "shapes")),
            "shapes, DDIM": Way(("shapes",), 0, sampler="DDIM"),
            "shapes + colours, the paper's settings, DDIM": Way(sampler="DDIM"),
            **{
                f"shapes + colours, rescaled, not corrected, DDIM, s = {s}": Way(
                    PAIR, s, (0.5,), (0.0, 0.0), "rescaled", "DDIM"
                )
                for s in (3, 5)
            },
        }
    if part == "three":
        three = Way(("shapes", "colours", "words"), best.steps)
        equal = (1 / math.sqrt(2), math.sqrt(2 / 3))
        return {
            "words": Way(("words",), 0),
            "shapes + colours": best,
            "all three, equal shares": three._replace(weights=equal, step_sizes=(0.0,) * 3, kind="rescaled"),
            "all three, nested, corrected": three,
            "all three, authors' weights, corrected": three._replace(kind="authors"),
            "all three, nested, s = 3": three._replace(steps=3),
            "all three, authors' weights, s = 3": three._replace(steps=3, kind="authors"),
        }
    raise typer.BadParameter(f"part must be settings, lengths, main or three, got {part}")


def settings(best: Way) -> dict[str, Way]:
    """What is tried: everything else as in `best`, one thing changed at a time."""
    none = (0.0, 0.0)
    tried = {
        f"w = {w}, s = {s}": best._replace(weights=(w,), steps=s)
        for s in (3, 5, 7)
        for w in (0.0, 0.25, 0.5, 0.75)
    }
    for kind in ("nested", "slerp", "rescaled"):
        tried |= {
            f"{kind}, {told}": Way(PAIR, best.steps, (0.5,), sizes, kind)
            for told, sizes in (("not corrected", none), ("corrected", None))
        }
    tried |= {f"corrected, s = {s}": Way(steps=s) for s in (0, 1, 5, 7, 10)}
    tried |= {f"corrected by {eta}": Way(PAIR, best.steps, (0.5,), (eta, eta)) for eta in (0.1, 0.2, 0.3)}
    return tried


class Watched(AggregatedPipeline):
    """Notes of every aggregated step how alike the models are, how long the nested sum is, and how far off.

    seen: a row a step: cosine of the first two, length of their nested sum over the first's, its distance
    from the first's mean and that of what the first drew, both in units of sqrt(d).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[list[float]] = []

    def _aggregate(self, stepped: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        x, mean = (torch.stack([pair[which].flatten(1) for pair in stepped]) for which in (0, 1))
        both, root = combine(x, self.weights, "nested"), math.sqrt(x.shape[-1])
        row = (
            F.cosine_similarity(x[0], x[1], dim=1),
            both.norm(dim=1) / x[0].norm(dim=1),
            (both - mean[0]).norm(dim=1) / root,
            (x[0] - mean[0]).norm(dim=1) / root,
        )
        self.seen.append([float(value.mean()) for value in row])
        return super()._aggregate(stepped)


def lengths(pipelines: dict[str, Any], asked: Sequence[Instances], steps: int) -> str:
    """Markdown: what `Watched` sees with either sampler, without correction and rescaled."""
    lines = ["| sampler | step | cosine | length | from the mean | of it noise |", "|---" + "|---:" * 5 + "|"]
    for sampler in ("DDPM", "DDIM"):
        with_sampler(pipelines, PAIR, sampler)
        together = Watched([pipelines[m] for m in PAIR], (0.5,), steps, (0.0, 0.0), kind="rescaled")
        generator = [torch.Generator().manual_seed(SEED * 100_000 + i) for i in range(len(asked))]
        together(
            calls=[call_of(model, asked, 0) for model in PAIR], num_inference_steps=STEPS,
            guidance_scale=1.0, generator=generator,
        )  # fmt: skip
        lines += [
            f"| {sampler} | {step} | " + " | ".join(f"{value:.3f}" for value in row) + " |"
            for step, row in enumerate(together.seen, 1)
        ]
    return "\n".join(lines) + "\n"


def with_sampler(pipelines: dict[str, Any], models: Sequence[str], sampler: str) -> None:
    for model in models:
        member = pipelines[model]
        member.scheduler = build_sampler(member.scheduler, Sampler(f"{sampler}Scheduler", STEPS))
        member.set_progress_bar_config(disable=True)


def read(file: Path, key: dict[str, Any]) -> dict[str, Any]:
    """The lines of a file that were measured like this, by way."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    found = {line["way"]: line for line in lines if {name: line[name] for name in key} == key}
    for line in found.values():
        line["detections"] = [
            [Detection(label, tuple(box), score, colour) for label, box, score, colour in one]
            for one in line["detections"]
        ]
    return found


def main(
    models: Path,
    out: Path,
    part: Annotated[str, typer.Option(help="settings, lengths, main or three")] = "main",
    count: Annotated[int, typer.Option(help="Layouts")] = 200,
    guidance: float = 1.0,
    steps: Annotated[int, typer.Option(help="Aggregated steps of the settings kept")] = 3,
    weight: Annotated[float, typer.Option(help="Weight of the settings kept")] = 0.25,
    kind: Annotated[str, typer.Option(help="Way to combine of the settings kept")] = "rescaled",
    size: Annotated[float, typer.Option(help="Step size of the settings kept")] = 0.0,
    only: Annotated[str | None, typer.Option(help="Ways that begin with this")] = None,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    best = Way(PAIR, steps, (weight,), (size, size), kind)
    ways = settings(best) if part == "settings" else {} if part == "lengths" else ways_of(part, best)
    first = TRIED_FROM if part == "settings" else 0
    detector, file, console = load_studio_detector(), out / f"{part}.jsonl", Console()
    real, asked = layouts(count, first=first)
    pipelines: dict[str, Any] = {name: load_pipeline(models / name) for name in PAIR}
    pipelines |= {"told": pipelines["shapes"], "words": load_pipeline(TINY_BASE)}
    if part == "lengths":
        told = lengths(pipelines, asked[:BATCH], STEPS)
        (out / "lengths.md").write_text(told)
        console.print(told)
        return
    found: dict[str, Any] = {
        "drawn by the studio": {"detections": detector(real), "seconds": 0.0, "calls": 0}
    }
    pictures = {"drawn by the studio": real}
    for name, way in ways.items():
        if only is not None and not name.startswith(only):
            continue
        key = json.loads(json.dumps({"settings": way, "count": count, "guidance": guidance}))
        digest = hashlib.sha256(json.dumps([name, key]).encode()).hexdigest()
        kept = out / f"{part}-{digest[:12]}.npz"
        line = read(file, key).get(name)
        if line is None:
            drawn = draw(pipelines, way, asked, detector, first=first, guidance=guidance, title=name)
            calls = STEPS + way.steps * (len(way.models) - 1)
            np.savez_compressed(kept, np.stack([np.asarray(picture) for picture in drawn.pictures]))
            boxes = [[(d.label, d.box, d.score, d.colour) for d in one] for one in drawn.detections]
            line = {"way": name, **key, "seconds": drawn.seconds, "calls": calls, "detections": boxes}
            with file.open("a") as opened:
                opened.write(json.dumps(line) + "\n")
            line = read(file, key)[name]
        found[name] = line
        pictures[name] = [Image.fromarray(x) for x in np.load(kept)["arr_0"][:8]]
        console.print(name, percent(*rate(hits(line["detections"], asked, "all"))))
    baseline = next((name for name in found if name in ("shapes", "corrected, s = 0")), None)
    told = table(found, asked, baseline)
    if part != "settings":
        told += "\n" + table_by_count(found, asked)
        sheet(pictures, asked[:8], first=first).save(out / f"{part}.png")
    (out / f"{part}.md").write_text(told)
    console.print(told, soft_wrap=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
