"""What the studies share: features drawn once, the threshold, results as JSON lines, tables."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from models import DDIM, Model, noises, sample, trained
from onbrand.evaluation import contact_sheet
from onbrand.evaluation.reproducibility import Calibration, Score, calibrate_threshold, cosines
from onbrand.pca import Sampler
from onbrand.whole_file import whole
from pictures import HELD_OUT, descriptor, drawn, features, latents
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

NOISES, FEWER = 512, 256  # the latter where many models are compared
RATE = 0.01  # of pairs of different pictures that count as the same one, for RP
GL_RATE = 1e-4  # for GL, which takes the best of up to 4,096 pairs


def kept(out: Path, name: str, make: Callable[[], Tensor]) -> Tensor:
    """A tensor read from OUT/samples, made and written there if it is not."""
    file = out / "samples" / f"{name}.safetensors"
    if not file.exists():
        with whole(file) as beside:
            save_file({"values": make().contiguous()}, beside)
    return load_file(file)["values"]


def sampled(model: Model, out: Path, *, sampler: Sampler = DDIM, count: int = NOISES) -> Tensor:
    """x_0 of the first shared noises."""
    name = f"{model.name}-{sampler.scheduler}{sampler.steps}-{count}"
    return kept(
        out, name, lambda: sample(trained(model, out), model.scheduler(), noises(count), sampler=sampler)
    )


def seen(model: Model, out: Path, *, sampler: Sampler = DDIM, count: int = NOISES) -> Tensor:
    """Descriptors (n, D) of the pictures of the first shared noises."""
    name = f"{model.name}-{sampler.scheduler}{sampler.steps}-{count}-features"
    return kept(out, name, lambda: features(sampled(model, out, sampler=sampler, count=count)))


def of_pictures(out: Path, pictures: str, count: int, look: str = "wild") -> Tensor:
    """Descriptors of the first pictures of a set, as the autoencoder renders them."""
    every = kept(out, f"pictures {look} {pictures}", lambda: features(latents(out, pictures, 10**6, look)))
    return every[:count]


def calibration(out: Path, *, rate: float = RATE) -> Calibration:
    """On held-out pictures: all pairs of them, and each with a copy cropped, shrunk and compressed."""
    held = of_pictures(out, "held out", HELD_OUT)
    copies = kept(
        out, "copies", lambda: descriptor()([_copy(p) for p in drawn(latents(out, "held out", HELD_OUT))])
    )
    pairs = (held.double() @ held.double().T).numpy()[np.triu_indices(len(held), 1)]
    return calibrate_threshold(cosines(held, copies), pairs, false_positive_rate=rate)


def _copy(picture: Image.Image) -> Image.Image:
    """A pixel of each edge cut off, three quarters of the size, JPEG of quality 75."""
    width, height = picture.size
    cropped = picture.crop((1, 1, width - 1, height - 1)).resize((width * 3 // 4, height * 3 // 4))
    file = io.BytesIO()
    cropped.save(file, "JPEG", quality=75)
    return Image.open(file)


class Results:
    """One study's lines in OUT/results.jsonl; what is there is not measured again."""

    def __init__(self, out: Path, study: str) -> None:
        self.file, self.study = out / "results.jsonl", study
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.lines: dict[str, dict[str, Any]] = {
            line["row"]: line for line in map(json.loads, lines) if line["study"] == study
        }

    def measured(self, row: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if row not in self.lines:
            line = {"study": self.study, "row": row, **measure()}
            with self.file.open("a") as lines:
                lines.write(json.dumps(line, default=asdict) + "\n")
            self.lines[row] = json.loads(json.dumps(line, default=asdict))
        return self.lines[row]


def mean_of(values: Sequence[float] | np.ndarray | Tensor) -> dict[str, float]:
    """Mean, standard error and number, in the form of a score."""
    array = np.asarray(values, dtype=np.float64)
    error = float(array.std(ddof=1) / len(array) ** 0.5)
    return {"value": float(array.mean()), "standard_error": error, "n": len(array)}


def sheet(rows: Mapping[str, Tensor], *, columns: int = 10) -> Image.Image:
    """The pictures of each row's first x_0, one column a noise."""
    pictures, captions = [], []
    for name, x_0 in rows.items():
        pictures += drawn(x_0[:columns])
        captions += [name] + [""] * (columns - 1)
    return contact_sheet(pictures, captions=captions, columns=columns, tile=96)


def told(score: dict[str, Any] | Score | None, digits: int = 3) -> str:
    if score is None:
        return ""
    values = score if isinstance(score, dict) else asdict(score)
    return f"{values['value']:.{digits}f} ± {values['standard_error']:.{digits}f}"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, then the same as Markdown for the documentation."""
    table = Table(title=title)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    lines = [" | ".join(columns), "---" + "|---:" * (len(columns) - 1), *(" | ".join(row) for row in rows)]
    console.print("\n".join(f"| {line} |" for line in lines), soft_wrap=True, highlight=False)
