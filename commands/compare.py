"""onbrand compare: does a checkpoint still draw what another drew, and is it the catalogue by heart?"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..configs import config_of
from .console import best_device, check_folder, notes_once, quiet_console, quiet_log
from .judges import load_descriptor
from .prompts import read_galleries

if TYPE_CHECKING:
    from ..configs.schema import DataConfig
    from ..data.catalogue import Catalogue
    from ..data.transform import ImageTransform

NOISES = 2  # of each prompt: pictures of one prompt from different noises are what a threshold must part
SHOWN = 8
BLOCK = 512  # pictures of a catalogue described at a time


class Asked(NamedTuple):
    """A prompt and its class, None where the prompt tells or there is none."""

    prompt: str
    class_name: str | None


@dataclass(frozen=True, eq=False)
class Shown:
    """A catalogue whose pictures are fitted to a model's frame when they are asked for.

    transforms: one a row.
    """

    config: DataConfig
    catalogue: Catalogue
    transforms: list[ImageTransform]

    def image(self, row: int) -> Any:
        return self.transforms[row].resize(self.catalogue.image(row))

    def __len__(self) -> int:
        return len(self.catalogue)


class Judged(NamedTuple):
    """What is said of two models' pictures: scores by name, the page's sections, facts, a cosine a pair."""

    scores: dict[str, Any]
    sections: list[Any]
    facts: dict[str, str]
    cosines: np.ndarray


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
    Raises ValueError on prompts from nowhere, on models that cannot draw them or not from the same noises, on
    a descriptor that is none, a threshold that is no cosine, and an output that is a file.
    """
    console = quiet_console()
    from ..evaluation.compare_page import write_compare_page
    from ..evaluation.thumbnails import Thumbnails
    from ..whole_file import write_whole

    if pictures < 2 * NOISES:
        raise ValueError(f"--pictures must be at least {2 * NOISES}, got {pictures}")
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"--threshold must be a cosine between -1 and 1, got {threshold:g}")
    check_folder(output)
    given = None if descriptor is None else load_descriptor(descriptor)
    models = _models(first, second)
    height, width = _frame(models)
    shown = None if catalogue is None else _open(catalogue, models)
    own = None if shown is None else shown[first]
    asked = _asked(models[first], first, own, prompts=prompts, count=pictures // NOISES)
    captions = [
        f"{one.prompt}, seed {seed + i * NOISES + j}" for i, one in enumerate(asked) for j in range(NOISES)
    ]
    how: dict[str, Any] = {"steps": steps, "guidance": guidance, "seed": seed}
    for name, pipeline in models.items():
        _check_classes(pipeline, asked, name, height=height, width=width)
    drawn = _drawn(models, asked, **how, height=height, width=width, console=console)
    describe = Thumbnails(drawn[first]) if given is None else given
    judged = _judge((first, second), drawn, captions, describe, threshold, shown)
    facts = {
        "prompts": f"{len(asked)}, {NOISES} noises each",
        "sampler": f"DDIM, {steps} steps, guidance {guidance:g}, seed {seed}",
        **judged.facts,
    }
    title = f"{first} and {second}"
    page = write_compare_page(
        output / "compare.html", title=title, verdict=_verdict(judged.scores), facts=facts,
        sections=judged.sections,
    )  # fmt: skip
    report = {
        "first": first, "second": second, "facts": facts,
        "scores": {name: asdict(score) for name, score in judged.scores.items()},
        "cosines": judged.cosines.tolist(),
    }  # fmt: skip
    write_whole(json.dumps(report, indent=1) + "\n", output / "compare.json")
    console.print(_table(judged.scores, title=title))
    console.print(f"{judged.facts['same picture']}\n[bold]page[/]  {page}", soft_wrap=True)
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
        pipeline.safety_checker = None  # two black pictures are no same picture
    return models


def _frame(models: dict[str, Any]) -> tuple[int, int]:
    """Height and width in pixels that all models draw, from noises of one shape: the first's own if all do.

    Raises ValueError, with each one's own latents, where there is none.
    """

    from ..inference.size import own_sizes, picture_size

    def latents(pipeline: Any, size: tuple[int, int]) -> tuple[int, ...]:
        return (pipeline.vae.config.latent_channels, *(side // pipeline.vae_scale_factor for side in size))

    def draws(pipeline: Any, size: tuple[int, int]) -> bool:
        return pipeline.start_distribution is None or size in own_sizes(pipeline)

    for size in (size for pipeline in models.values() for size in own_sizes(pipeline)):
        shapes = {latents(pipeline, size) for pipeline in models.values()}
        if len(shapes) == 1 and all(draws(pipeline, size) for pipeline in models.values()):
            return size
    own = {name: latents(pipeline, picture_size(pipeline)) for name, pipeline in models.items()}
    told = " and ".join(f"{' x '.join(map(str, shape))} for {name}" for name, shape in own.items())
    raise ValueError(f"checkpoints must draw from latents of one shape, got {told}")


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


def _judge(
    names: tuple[str, str],
    drawn: dict[str, list[Any]],
    captions: list[str],
    describe: Any,
    threshold: float | None,
    shown: dict[str, Shown] | None,
) -> Judged:
    """How alike two models' pictures of the same noises are, and each one's to its catalogue."""
    from ..evaluation.reproducibility import cosines, gl_score, nearest, rp_score

    first, second = names
    features = {name: np.asarray(describe(pictures)) for name, pictures in drawn.items()}
    ours, theirs = features[first], features[second]
    threshold, why = _threshold(threshold, describe, drawn[first], ours, theirs)
    same = cosines(ours, theirs)
    scores = {"RP": rp_score(ours, theirs, threshold=threshold)}
    sections = _pairs(drawn[first], drawn[second], same, captions, columns=names)
    facts = {"descriptor": describe.name, "same picture": why}
    if shown is not None:
        known = {one: _features(one, describe) for one in set(shown.values())}
        for name, each in features.items():
            scores[f"GL of {name}"] = gl_score(each, known[shown[name]], threshold=threshold)
            places, best = nearest(each, known[shown[name]], 1)
            sections.append(_nearest(name, drawn[name], shown[name], places[:, 0], best[:, 0], captions))
        facts["catalogue"] = f"{shown[first].config.source}, {len(shown[first])} pictures"
    for name, score in scores.items():
        facts[name] = f"{score}, 95 % {_interval(score)}"
    return Judged(scores, sections, facts, same)


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


def _open(catalogue: str, models: dict[str, Any]) -> dict[str, Shown]:
    """The catalogue in each model's frame, opened once where they are alike.

    A model without a start distribution does not know how it was taught: it takes the other's.
    """
    from .audit import framing_of

    known = [pipeline for pipeline in models.values() if pipeline.start_distribution]
    found: dict[str, Shown] = {}
    for name, pipeline in models.items():
        told = pipeline if pipeline.start_distribution or not known else known[0]
        config = config_of([], data={"source": catalogue, **framing_of(told)}).data
        alike = [shown for shown in found.values() if shown.config == config]
        found[name] = alike[0] if alike else _in_frame(config)
    return found


def _in_frame(config: DataConfig) -> Shown:
    from ..train.part import size_of, transform_of
    from ..train.prepare import buckets_of, open_catalogue

    catalogue = open_catalogue(config)
    buckets = buckets_of(catalogue, config, complete=False)
    transforms = [transform_of(config, size_of(buckets, row)) for row in range(len(catalogue))]
    return Shown(config, catalogue, transforms)


def _asked(pipeline: Any, name: str, shown: Shown | None, *, prompts: Path | None, count: int) -> list[Asked]:
    """The prompts: a file's, the catalogue's captions under the prefixes by which the model knows classes, or
    those alone."""
    start = pipeline.start_distribution
    prefixes = (start.config["caption_prefixes"] if start else None) or {}
    if prompts is not None:
        rows = read_galleries([f"@{prompts}"], count=1, class_name=None, negative=None, seed=0)
        if any(row.negative is not None or row.seed != i for i, row in enumerate(rows)):
            raise ValueError(
                f"--prompts must say prompt and class alone, got seeds or negatives in {prompts}"
            )
        found = [Asked(row.prompt, row.class_name) for row in rows]
    elif shown is not None:
        taught = shown.catalogue.with_prefixes(prefixes)
        classes = [picture.class_name for picture in taught.pictures]
        found = list(dict.fromkeys(map(Asked, taught.captions, classes)))
    elif prefixes:
        found = [Asked(prefix or f"a {class_name}", class_name) for class_name, prefix in prefixes.items()]
    else:
        raise ValueError(f"prompts must come by --prompts or --catalogue for {name}, got neither")
    # all of them evenly, and again from the beginning where there are fewer
    return [found[i * len(found) // count] if len(found) > count else found[i % len(found)]
            for i in range(count)]  # fmt: skip


def _known(start: Any, asked: list[Asked]) -> list[str | None]:
    """The class of each, None where the model does not have it and the prompt must tell."""
    return [one.class_name if one.class_name in start.class_names else None for one in asked]


def _check_classes(pipeline: Any, asked: list[Asked], name: str, *, height: int, width: int) -> None:
    """Raises ValueError, naming the checkpoint, on prompts that it has no class for."""
    from ..inference.choice import resolve_classes

    start, factor = pipeline.start_distribution, pipeline.vae_scale_factor
    if start is None:
        return
    size = (height // factor, width // factor)
    try:
        resolve_classes(start, [one.prompt for one in asked], _known(start, asked), size=size, any_class=True)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _draw(
    pipeline: Any,
    asked: list[Asked],
    *,
    steps: int,
    guidance: float,
    seed: int,
    height: int,
    width: int,
    advance: Any,
) -> list[Any]:
    from ..inference.generate import generate
    from ..pca import Sampler

    start, call = pipeline.start_distribution, {}
    if start is not None:
        call = {"class_names": _known(start, asked), "start": start.default_start}
    return generate(
        pipeline, [one.prompt for one in asked], count=NOISES, sampler=Sampler("DDIMScheduler", steps),
        guidance_scale=guidance, seed=seed, height=height, width=width, advance=advance, **call,
    )  # fmt: skip


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
