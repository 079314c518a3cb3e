"""Finds the studio's products in pictures, real or generated: kinds, boxes and colours, any number of each.

`python -m onbrand.assets.studio_detector --work WORK` trains it anew, writes studio_detector.safetensors and
prints how well it does on scenes it has not seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import nn

from ..data.studio import CLASSES, Shot
from ..evaluation.detection import Detection, Wanted, best_iou, layout_scores
from .classifier import COLOUR_NAMES
from .loop import optimise
from .studio_scenes import NOBODY, Scene, box_of, scenes
from .vae import to_pixels

WEIGHTS = Path(__file__).with_name("studio_detector.safetensors")
SIDE = 64
STEPS, BATCH, LEARNING_RATE = 3200, 32, 3e-3
PICTURES = 16_000  # half of the wild look, half free scenes
TRAINING_SEED, HELD_OUT_SEED, HELD_OUT = 21, 99, 500
NOTHING = len(CLASSES)
KIND_SHARE = 0.35
SMALLEST = 12  # pixels; fewer of a kind together are a mistake, not a product


class SceneReader(nn.Module):
    """Of pixels (B, 3, 64, 64) in [-1, 1] logits (B, kinds + 1 + colours, 64, 64).

    For every pixel which kind of product it belongs to, the last for none, and in which colour that would be.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 40, 72, 96)
        self.down = nn.ModuleList(
            nn.Sequential(_layer(before, after, stride=2), _layer(after, after))
            for before, after in pairwise((3, *widths))
        )
        self.up = nn.ModuleList(_layer(low + high, high) for high, low in pairwise(widths))
        self.head = nn.Conv2d(widths[0], len(CLASSES) + 1 + len(COLOUR_NAMES), 3, padding=1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        levels: list[torch.Tensor] = []
        x = pixels
        for down in self.down:
            x = down(x)
            levels.append(x)
        for up, level in zip(reversed(self.up), reversed(levels[:-1]), strict=True):
            x = up(torch.cat([_doubled(x), level], dim=1))
        return _doubled(self.head(x))


def _layer(before: int, after: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class StudioDetector:
    """A detector of the studio's products; `labels` are their kinds, `colours` their colours.

    A detection is a connected patch of one colour and kind; its score is the mean probability of the kind
    there, and those below min_score are left out. Within a patch of one colour a kind of less than 35 % of
    its pixels gives way to the others. Pictures of other sizes are brought to 64 x 64 first.
    """

    labels = CLASSES
    colours = COLOUR_NAMES

    def __init__(self, reader: SceneReader, *, min_score: float = 0.5) -> None:
        self.reader, self.min_score = reader.eval(), min_score

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[list[Detection]]:
        """The detections of each picture, the surest first."""
        if not pictures:
            return []
        box = Image.Resampling.BOX
        pixels = np.stack([np.asarray(p.convert("RGB").resize((SIDE, SIDE), box)) for p in pictures])
        found = []
        for i in range(0, len(pixels), 128):
            logits = self.reader(to_pixels(pixels[i : i + 128]))
            kinds = logits[:, : NOTHING + 1].softmax(1).numpy()
            colours = logits[:, NOTHING + 1 :].numpy()
            found += [_found(*one) for one in zip(kinds, colours, strict=True)]
        return [[one for one in own if one.score >= self.min_score] for own in found]


def _found(kinds: np.ndarray, colours: np.ndarray) -> list[Detection]:
    """Detections from probabilities (kinds + 1, H, W) and the colours' logits (colours, H, W)."""
    found = []
    likeliest = kinds.argmax(0)
    colour_of = np.where(likeliest == NOTHING, NOBODY, colours.argmax(0))
    for colour, name in enumerate(COLOUR_NAMES):
        for patch in _patches(colour_of == colour):
            counts = np.bincount(likeliest[patch], minlength=NOTHING)
            own = np.flatnonzero(counts >= min(KIND_SHARE * patch.sum(), counts.max()))
            kind_of = own[kinds[own].argmax(0)]
            for kind in own:
                for mask in _patches(patch & (kind_of == kind)):
                    score = float(kinds[kind][mask].mean())
                    found.append(Detection(CLASSES[kind], box_of(mask), score, name))
    return sorted(found, key=lambda detection: -detection.score)


def _patches(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The connected parts of a mask (H, W), corners included, of at least SMALLEST pixels."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
    for number in range(1, count + 1):
        part = parts == number
        if part.sum() >= SMALLEST:
            yield part


def load_studio_detector(*, min_score: float = 0.5) -> StudioDetector:
    """The packaged detector."""
    reader = SceneReader()
    reader.load_state_dict(load_file(WEIGHTS))
    return StudioDetector(reader, min_score=min_score)


def train_reader(*, work: Path, steps: int = STEPS, pictures: int = PICTURES) -> SceneReader:
    """A reader trained on the studio's wild look and on scenes as layouts may want them."""
    work.mkdir(parents=True, exist_ok=True)
    shots = [Shot("wild", SIDE, TRAINING_SEED, i) for i in range(pictures // 2)]
    drawn = scenes(shots, range(pictures // 2))
    pixels = np.stack([np.asarray(scene.picture) for scene in drawn])
    kinds, colours = (np.stack(maps) for maps in zip(*map(_truth, drawn), strict=True))
    torch.manual_seed(0)
    reader = SceneReader()

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(pixels), (BATCH,), generator=generator)
        seen = _softened(to_pixels(pixels[rows.numpy()]), generator)
        logits = reader(seen)
        kind, colour = (torch.from_numpy(maps[rows.numpy()]).long() for maps in (kinds, colours))
        loss = F.cross_entropy(logits[:, : NOTHING + 1], kind)
        return loss + 0.3 * F.cross_entropy(logits[:, NOTHING + 1 :], colour, ignore_index=NOBODY)

    optimise(reader, loss_of, name="studio_detector", work=work, steps=steps, learning_rate=LEARNING_RATE)
    return reader.eval()


def _truth(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Kind, or NOTHING, and colour, or NOBODY, of every pixel, each (H, W) int8."""
    own = [(CLASSES.index(p.kind), COLOUR_NAMES.index(p.colour)) for p in scene.products]
    table = np.array([*own, (NOTHING, NOBODY)], dtype=np.int8)
    return table[scene.owner, 0], table[scene.owner, 1]


def _softened(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the pictures a little out of focus and noisy, as an autoencoder leaves them."""
    rows = (len(pixels), 1, 1, 1)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(rows, generator=generator) * (torch.rand(rows, generator=generator) < 0.5)
    noise = torch.randn(pixels.shape, generator=generator) * 0.04 * share
    return (1 - share) * pixels + share * blurred + noise


def held_out_scores(detector: StudioDetector, drawn: Sequence[Scene]) -> dict[str, float]:
    """Instances, their recall at IoU .5 and mean IoU by size, colours right, and detections of nothing."""
    found = detector([scene.picture for scene in drawn])
    wanted = [[Wanted(product.kind, box) for product, box in scene.boxes()] for scene in drawn]
    coloured = [[Wanted(product.kind, box, product.colour) for product, box in s.boxes()] for s in drawn]
    plain, right = layout_scores(found, wanted), layout_scores(found, coloured)
    total = sum(map(len, found))
    true = sum(
        best_iou(Wanted(one.label, one.box), [Detection(w.label, w.box, 1.0) for w in asked]) > 0.5
        for detections, asked in zip(found, wanted, strict=True)
        for one in detections
    )
    told: dict[str, float] = {}
    for name, score in plain.items():
        told |= {
            f"{name}: instances": score.n,
            f"{name}: recall": score.success,
            f"{name}: mean IoU": score.mean_iou,
        }
    told |= {"colour right of those found": right["all"].success / (plain["all"].success or 1)}
    told |= {"precision": true / max(total, 1)}
    return {name: round(value, 4) for name, value in told.items()}


def main(
    work: Annotated[Path, typer.Option(help="Keeps checkpoints and the loss curve")],
    steps: int = STEPS,
    pictures: int = PICTURES,
    held_out: int = HELD_OUT,
) -> None:
    """Trains the detector, writes its weights beside this file, and prints its held-out scores."""
    reader = train_reader(work=work, steps=steps, pictures=pictures)
    halved = {name: x.half() if x.is_floating_point() else x for name, x in reader.state_dict().items()}
    save_file(halved, WEIGHTS)
    shots = [Shot("wild", SIDE, HELD_OUT_SEED, i) for i in range(held_out)]
    unseen = range(pictures, pictures + held_out)
    for name, drawn in (("wild look", scenes(shots, range(0))), ("free scenes", scenes([], unseen))):
        told = held_out_scores(load_studio_detector(), drawn)
        typer.echo(f"{name}: {json.dumps(told, indent=1)}")


if __name__ == "__main__":
    typer.run(main)
