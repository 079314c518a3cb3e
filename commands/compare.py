"""onbrand compare: does a checkpoint still draw what another drew, and is it the catalogue by heart?"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..configs import config_of
from .console import best_device, notes_once, quiet_console, quiet_log
from .judges import load_descriptor
from .prompts import read_galleries

NOISES = 2  # of each prompt: pictures of one prompt from different noises are what a threshold must part
SHOWN = 8
BLOCK = 512  # pictures of a catalogue described at a time


class Asked(NamedTuple):
    """A prompt and its class, None where the prompt tells or there is none."""

    prompt: str
    class_name: str | None


@dataclass(frozen=True)
class Shown:
    """A catalogue whose pictures are fitted to the models' frame when they are asked for."""

    catalogue: Any
    transform: Any

    def image(self, row: int) -> Any:
        return self.transform.resize(self.catalogue.image(row))

    def __len__(self) -> int:
        return len(self.catalogue)


def compare(
    first: str,
    second: str,
    *,
    catalogue: str | None,
    prompts: Path | None,
    pictures: int,
    descriptor: str | None,
    threshold: float | None,
    steps: int,
    guidance: float,
    seed: int,
    output: Path,
) -> Path:
    """Draws the same prompts from the same noises with both; prints RP, and GL against a catalogue.

    descriptor: an SSCD torchscript file or a CLIP folder or hub id; None: thumbnails. threshold: the cosine
    above which two pictures are the same one; None: .6 for SSCD, else the lowest that at most 1 % of pairs of
    one prompt's pictures from different noises exceed. Writes compare.json and compare.html to output.
    Raises ValueError on prompts from nowhere, and on models that cannot draw them.
    """
    console = quiet_console()
    from ..evaluation.compare_page import write_compare_page
    from ..evaluation.reproducibility import cosines, gl_score, nearest, rp_score

    if pictures < 2 * NOISES:
        raise ValueError(f"--pictures must be at least {2 * NOISES}, got {pictures}")
    models = _models(first, second)
    shown = None if catalogue is None else _open(catalogue, side=max(models[first]._size(None, None)))
    asked = _asked(models[first], first, shown, prompts=prompts, count=pictures // NOISES)
    captions = [
        f"{one.prompt}, seed {seed + i * NOISES + j}" for i, one in enumerate(asked) for j in range(NOISES)
    ]
    drawn = _drawn(models, asked, steps=steps, guidance=guidance, seed=seed, console=console)
    describe = _descriptor(descriptor, drawn[first])
    features = {name: np.asarray(describe(own)) for name, own in drawn.items()}
    ours, theirs = features[first], features[second]
    threshold, why = _threshold(threshold, describe, drawn[first], ours, theirs)
    same = cosines(ours, theirs)
    scores = {"RP": rp_score(ours, theirs, threshold=threshold)}
    sections = _pairs(drawn[first], drawn[second], same, captions, columns=(first, second))
    facts = {
        "prompts": f"{len(asked)}, {NOISES} noises each",
        "sampler": f"DDIM, {steps} steps, guidance {guidance:g}, seed {seed}",
        "descriptor": describe.name,
        "same picture": why,
    }
    if shown is not None:
        known = _features(shown, describe)
        for name, own in features.items():
            scores[f"GL of {name}"] = gl_score(own, known, threshold=threshold)
            places, best = nearest(own, known, 1)
            sections.append(_nearest(name, drawn[name], shown, places[:, 0], best[:, 0], captions))
        facts["catalogue"] = f"{catalogue}, {len(shown)} pictures"
    for name, score in scores.items():
        facts[name] = f"{score}, 95 % {_interval(score)}"
    output.mkdir(parents=True, exist_ok=True)
    title = f"{first} and {second}"
    page = write_compare_page(
        output / "compare.html", title=title, verdict=_verdict(scores), facts=facts, sections=sections
    )
    told = {name: asdict(score) for name, score in scores.items()}
    report = {"first": first, "second": second, "facts": facts, "scores": told, "cosines": same.tolist()}
    (output / "compare.json").write_text(json.dumps(report, indent=1) + "\n")
    console.print(_table(scores, title=title))
    console.print(f"{why}\n[bold]page[/]  {page}", soft_wrap=True)
    return page


def _models(*names: str) -> dict[str, Any]:
    """The checkpoints by name, one that is named twice once."""
    from ..inference.load import load_pipeline
    from ..train.models import resolve_base

    with quiet_log():
        models = {name: load_pipeline(resolve_base(name)) for name in dict.fromkeys(names)}
    for name, pipeline in models.items():
        if hasattr(pipeline, "controlnet"):
            raise ValueError(f"checkpoint must be one without a ControlNet, got {name}")
    return models


def _drawn(models: dict[str, Any], asked: list[Asked], *, console: Any, **how: Any) -> dict[str, list[Any]]:
    """What each model draws of all prompts, from the same noises."""
    from rich.progress import Progress

    from ..inference.load import to_draw

    with Progress(console=console, transient=True) as progress, notes_once(console.print):
        bar = progress.add_task("drawing", total=len(models) * len(asked) * NOISES)
        return {
            name: _draw(
                to_draw(pipeline, best_device()), asked, advance=lambda n: progress.advance(bar, n), **how
            )
            for name, pipeline in models.items()
        }


def _features(shown: Shown, describe: Any) -> np.ndarray:
    """Of a catalogue's pictures, (pictures, dimensions), read a block at a time."""
    blocks = [range(i, min(i + BLOCK, len(shown))) for i in range(0, len(shown), BLOCK)]
    return np.concatenate([np.asarray(describe([shown.image(i) for i in block])) for block in blocks])


def _table(scores: dict[str, Any], *, title: str) -> Any:
    from rich.table import Table

    table = Table(title=title)
    for column in ("measure", "value", "95 %", "what it is"):
        table.add_column(column)
    for name, score in scores.items():
        what = "same noise, same picture" if name == "RP" else "pictures that are none of the catalogue's"
        table.add_row(name, f"{score.value:.3f} ± {score.standard_error:.3f}", _interval(score), what)
    return table


def _interval(score: Any) -> str:
    low, high = score.interval
    return f"{low:.3f} to {high:.3f}"


def _open(catalogue: str, *, side: int) -> Any:
    from ..train.part import transform_of
    from ..train.prepare import open_catalogue

    config = config_of([], data={"source": catalogue, "resolution": side})
    opened, transform = open_catalogue(config.data), transform_of(config.data)

    return Shown(opened, transform)


def _asked(pipeline: Any, name: str, catalogue: Any, *, prompts: Path | None, count: int) -> list[Asked]:
    """The prompts: a file's, the catalogue's captions, or the prefixes by which classes are known."""
    start = pipeline.start_distribution
    if prompts is not None:
        rows = read_galleries([f"@{prompts}"], count=1, class_name=None, negative=None, seed=0)
        if any(row.negative is not None or row.seed != i for i, row in enumerate(rows)):
            raise ValueError(
                f"--prompts must say prompt and class alone, got seeds or negatives in {prompts}"
            )
        found = [Asked(row.prompt, row.class_name) for row in rows]
    elif catalogue is not None:
        shown = [Asked(caption, picture.class_name) for caption, picture in
                 zip(catalogue.catalogue.captions, catalogue.catalogue.pictures, strict=True)]  # fmt: skip
        found = list(dict.fromkeys(shown))
    elif start is not None and start.config["caption_prefixes"]:
        prefixes = start.config["caption_prefixes"]
        found = [Asked(prefix, class_name) for class_name, prefix in prefixes.items()]
    else:
        raise ValueError(f"prompts must come by --prompts or --catalogue for {name}, got neither")
    # all of them evenly, and again from the beginning where there are fewer
    return [found[i * len(found) // count] if len(found) > count else found[i % len(found)]
            for i in range(count)]  # fmt: skip


def _draw(
    pipeline: Any, asked: list[Asked], *, steps: int, guidance: float, seed: int, advance: Any
) -> list[Any]:
    from ..inference.generate import generate
    from ..pca import Sampler

    start, call = pipeline.start_distribution, {}
    if start is not None:
        names = [one.class_name if one.class_name in start.class_names else None for one in asked]
        call = {"class_names": names, "start": start.default_start}
    return generate(
        pipeline, [one.prompt for one in asked], count=NOISES, sampler=Sampler("DDIMScheduler", steps),
        guidance_scale=guidance, seed=seed, advance=advance, **call,
    )  # fmt: skip


def _descriptor(source: str | None, reference: list[Any]) -> Any:
    if source is None:
        from ..evaluation.thumbnails import Thumbnails

        return Thumbnails(reference)
    return load_descriptor(source)


def _threshold(
    given: float | None, describe: Any, pictures: list[Any], ours: np.ndarray, theirs: np.ndarray
) -> tuple[float, str]:
    """The cosine from which on pictures count as the same one, and why."""
    from ..evaluation.reproducibility import SAME_PICTURE, calibrate_threshold, cosines
    from ..evaluation.similarity import SSCD

    if given is not None or isinstance(describe, SSCD):
        value = SAME_PICTURE if given is None else given
        return value, f"a cosine above {value:g} counts as the same picture"
    sets = [(a, b) for a in (ours, theirs) for b in (ours, theirs)]
    different = np.concatenate([cosines(a[0::NOISES], b[1::NOISES]) for a, b in sets])
    rate = max(0.01, 1 / len(different))
    copies = np.asarray(describe([_copy(picture) for picture in pictures]))
    calibration = calibrate_threshold(cosines(ours, copies), different, false_positive_rate=rate)
    return calibration.threshold, str(calibration)


def _copy(picture: Any) -> Any:
    """A picture as another site would show it: smaller, and through JPEG."""
    from PIL import Image

    stream = io.BytesIO()
    small = picture.convert("RGB").resize((max(8, picture.width // 2), max(8, picture.height // 2)))
    small.save(stream, format="JPEG", quality=75)
    return Image.open(stream).resize(picture.size)


def _pairs(
    first: list[Any], second: list[Any], same: np.ndarray, captions: list[str], *, columns: tuple[str, str]
) -> list[Any]:
    from ..evaluation.compare_page import Pair, Section

    order = np.argsort(same)
    told = {
        "Where they differ most": order[:SHOWN],
        "Where they agree most": order[::-1][:SHOWN],
    }
    return [
        Section(
            title,
            "The same prompt from the same noise; the number is the cosine of their features.",
            columns,
            [Pair(first[i], second[i], float(same[i]), captions[i]) for i in places],
        )
        for title, places in told.items()
    ]


def _nearest(
    name: str,
    drawn: list[Any],
    shown: Any,
    places: np.ndarray,
    cosines: np.ndarray,
    captions: list[str],
) -> Any:
    from ..evaluation.compare_page import Pair, Section

    order = np.argsort(-cosines)[:SHOWN]
    pairs = [Pair(drawn[i], shown.image(int(places[i])), float(cosines[i]), captions[i]) for i in order]
    told = "What was drawn that is most like a picture of the catalogue, beside that picture."
    return Section(f"{name}: nearest to the catalogue", told, ("drawn", "catalogue"), pairs)


def _verdict(found: dict[str, Any]) -> str:
    share = found["RP"].value
    told = f"From the same noise the two draw the same picture in {share:.0%} of cases."
    for name, score in found.items():
        if name.startswith("GL"):
            told += f" Of {name[6:]}'s pictures {1 - score.value:.0%} are pictures of the catalogue."
    return told
