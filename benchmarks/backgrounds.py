"""Ways to give an object new backgrounds: `python benchmarks/backgrounds.py [--pictures N] [--out FILE]`

Studio pictures, one product on any background, whose masks are known exactly; the model is the tiny base, or
--base. Every way draws a gallery of --images by DDIM at guidance 1 and is measured by its own figures:
RMSE-F (is the object kept), L2-B and LPIPS-B (do the backgrounds differ), Boundary-TV (does it sit smoothly),
BRISQUE (is the whole natural); LPIPS-B and BRISQUE only where their libraries and weights are found.
Prints means over the pictures and appends one line of JSON to --out.

  inversion           the whole picture's noise: a reconstruction, no new background
  object inversion    the object's noise, independent noise around it
  SDEdit S            the picture with noise of strength S, sampled again, the object pasted at the end
  paste               sampling from noise, the object's noisy latents pasted after every step
  full N, skip N      the object's noise refined for N steps, repulsive noise around it, by either gradient
"""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from onbrand.data.studio import CLASSES, COLOURS, FINISHES, Product
from onbrand.data.studio_backgrounds import wild_background
from onbrand.data.studio_camera import Light, Placement, fitted, mask_of, paint, to_picture
from onbrand.data.studio_shapes import PRODUCTS
from onbrand.evaluation import (
    boundary_tv,
    brisque,
    l2_background,
    load_lpips,
    lpips_background,
    rmse_foreground,
)
from onbrand.evaluation.pixels import Gallery, to_pictures, to_pixels
from onbrand.inference import load_pipeline
from onbrand.inference.backgrounds import GRADIENTS, refine
from onbrand.inference.couplings import Repulsive
from onbrand.inference.inversion import DDIM, DdimMap, for_gradients, invert
from onbrand.inference.mask import latent_mask, object_mask
from onbrand.inference.picture import fit_to_frame
from onbrand.inference.size import picture_size
from onbrand.train.models import TINY_BASE
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

STRENGTHS, STEPS = (0.2, 0.4, 0.6, 0.8), (10, 25, 50, 100)
MEASURES = ("RMSE-F", "L2-B", "LPIPS-B", "Boundary-TV", "BRISQUE", "seconds")
SMALLEST = 64  # pixels a side that the studio's parts are drawn at


class Scene(NamedTuple):
    """A studio picture with one product, its caption, and its mask as a picture."""

    picture: Image.Image
    mask: Image.Image
    caption: str


def studio_scene(seed: int, size: int) -> Scene:
    """One product somewhere on a wild background, not cut by the frame."""
    rng = np.random.default_rng(seed)
    product = Product(str(rng.choice(CLASSES)), str(rng.choice(list(COLOURS))), str(rng.choice(FINISHES)))
    canvas = wild_background(rng, size)
    extent = rng.uniform(0.45, 0.6)
    centre = 0.5 + rng.uniform(-0.12, 0.12, 2)
    placement = Placement(float(centre[0]), float(centre[1]), float(extent), float(rng.normal(0, 8)))
    light = Light(side=rng.uniform(-0.6, 0.6), strength=rng.uniform(0.1, 0.4), shadow=0.0)
    parts = PRODUCTS[product.kind](rng)
    colour = np.array(COLOURS[product.colour]) / 255
    paint(canvas, parts, placement, colour=colour, finish=product.finish, light=light)
    parts, matrix = fitted(parts, placement)
    mask = np.maximum.reduce([mask_of(part.outline, matrix, size) for part in parts])
    picture = to_picture(canvas, rng, noise=0.004)
    return Scene(picture, Image.fromarray((mask * 255).round().astype(np.uint8)), product.words())


class Work(NamedTuple):
    """What the ways of one picture share; inside: (h, w), mask: (H, W), target: (3, H, W) in [0, 1]."""

    draw: DdimMap
    x_0: Tensor
    x_T: Tensor
    noise: Tensor
    inside: Tensor
    mask: Tensor
    target: Tensor

    def noisy(self, begin: int, eps: Tensor) -> Tensor:
        """The picture's latents with noise, as they enter step `begin`; as they leave the last: clean."""
        if begin == len(self.draw.steps):
            return self.x_0.expand_as(eps)
        a = float(self.draw.pipeline.scheduler.alphas_cumprod[self.draw.steps[begin].timestep])
        return a**0.5 * self.x_0 + (1 - a) ** 0.5 * eps

    def decoded(self, x_0: Tensor) -> Tensor:
        return self.draw.pixels(x_0).clamp(0, 1).cpu()


@torch.no_grad()
def inversion(work: Work) -> Tensor:
    return work.decoded(work.draw(work.x_T.expand_as(work.noise)))


@torch.no_grad()
def object_inversion(work: Work) -> Tensor:
    return work.decoded(work.draw(torch.where(work.inside, work.x_T, work.noise)))


@torch.no_grad()
def sdedit(work: Work, *, strength: float) -> Tensor:
    """Source: arXiv 2108.01073; the object is pasted before it is measured, as METHODS' paper does."""
    steps = len(work.draw.steps)
    begin = steps - int(steps * strength)
    drawn = work.decoded(work.draw(work.noisy(begin, work.noise), begin=begin))
    return torch.where(work.mask, work.target, drawn)


@torch.no_grad()
def paste(work: Work) -> Tensor:
    """RePaint without its going back and forth (arXiv 2201.09865)."""
    x = torch.where(work.inside, work.noisy(0, work.noise), work.noise)
    for index in range(len(work.draw.steps)):
        x = work.draw(x, begin=index, end=index + 1)
        x = torch.where(work.inside, work.noisy(index + 1, work.noise), x)
    return work.decoded(x)


WAYS: dict[str, Callable[[Work], Tensor]] = {
    "inversion": inversion,
    "object inversion": object_inversion,
    **{f"SDEdit {strength}": partial(sdedit, strength=strength) for strength in STRENGTHS},
    "paste": paste,
}


class Ruler:
    """The measures of a gallery; those whose library or weights are missing are left out, and named."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.lpips = self._try("LPIPS-B", load_lpips)
        blank = [Image.new("RGB", (64, 64))]
        self.brisque = self._try("BRISQUE", lambda: brisque(blank) is not None)

    def _try(self, name: str, load: Callable[[], Any]) -> Any:
        try:
            return load()
        except (ImportError, OSError) as error:
            self.missing.append(f"{name} ({str(error).splitlines()[0]})")
            return None

    def __call__(self, gallery: Gallery, original: Image.Image, mask: np.ndarray) -> dict[str, float]:
        found = {
            "RMSE-F": rmse_foreground(gallery, original, mask),
            "L2-B": l2_background(gallery, mask),
            "Boundary-TV": float(np.mean([boundary_tv(picture, mask) for picture in gallery])),
        }
        if self.lpips is not None:
            found["LPIPS-B"] = lpips_background(gallery, mask, distance=self.lpips)
        if self.brisque:
            found["BRISQUE"] = float(brisque(gallery).mean())
        return found


def galleries(
    pipeline: Any, scene: Scene, *, images: int, learning_rate: float, seed: int
) -> Iterator[tuple[str, list[Image.Image], Image.Image, np.ndarray, float]]:
    """Way, its gallery, the original and mask as fitted, and seconds, of every way."""
    height, width = picture_size(pipeline)
    size = {"height": height, "width": width}
    fitted_mask = object_mask(scene.picture, scene.mask, **size)
    outline = fitted_mask.numpy()
    original = fit_to_frame(scene.picture, **size)
    with for_gradients(pipeline):
        back = invert(pipeline, scene.picture, prompt=scene.caption, start="none")
        device = pipeline._execution_device
        noise = torch.randn(images, *back.x_T.shape[1:], generator=torch.Generator().manual_seed(seed))
        work = Work(
            DdimMap(pipeline, [scene.caption] * images, **size),
            back.x_0.to(device),
            back.x_T.to(device),
            noise.to(device),
            latent_mask(fitted_mask, tuple(noise.shape[-2:])).to(device),
            fitted_mask,
            torch.from_numpy(to_pixels([original])[0]).float(),
        )
        for name, way in WAYS.items():
            began = time.perf_counter()
            drawn = to_pictures(way(work))
            yield name, drawn, original, outline, time.perf_counter() - began
        drawn = Repulsive().draw(images, tuple(back.x_T.shape[1:]), torch.Generator().manual_seed(seed))
        eps = torch.where(work.inside.cpu(), back.x_T, drawn)
        for gradient in GRADIENTS:
            began = time.perf_counter()
            states = refine(
                work.draw, eps, None, inside=work.inside, mask=work.mask, target=work.target,
                steps=STEPS[-1], learning_rate=learning_rate, gradient=gradient,
            )  # fmt: skip
            for steps, state in enumerate(states):
                if steps in STEPS:
                    drawn = to_pictures(state.pixels.clamp(0, 1))
                    yield f"{gradient} {steps}", drawn, original, outline, time.perf_counter() - began


def main(
    pictures: Annotated[int, typer.Option(min=1)] = 16,
    images: Annotated[int, typer.Option(min=2, help="Of a gallery")] = 4,
    base: Annotated[str, typer.Option(help="A diffusers folder or hub id")] = str(TINY_BASE),
    learning_rate: float = 0.1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: str = "cpu",
    out: Annotated[Path, typer.Option(help="Gains a line of JSON")] = Path("runs/backgrounds.jsonl"),
    sheet: Annotated[Path | None, typer.Option(help="A picture of the first galleries")] = None,
) -> None:
    """Measures every way on the same pictures."""
    pipeline, ruler, console = load_pipeline(base, plain=True).to(device), Ruler(), Console()
    pipeline.set_progress_bar_config(disable=True)
    size, rows, shown = max(SMALLEST, picture_size(pipeline)[0]), defaultdict(list), []
    for index in track(range(pictures), description="pictures", console=console):
        scene = studio_scene(seed + index, size)
        how = {"images": images, "learning_rate": learning_rate, "seed": seed + index}
        for name, drawn, original, mask, seconds in galleries(pipeline, scene, **how):
            rows[name].append(ruler(drawn, original, mask) | {"seconds": seconds})
            if index == 0:
                shown.append([original, *drawn])
    table = Table(title=f"{pictures} studio pictures, galleries of {images}, {size} pixels")
    for name in ("way", *MEASURES):
        table.add_column(name, justify="left" if name == "way" else "right")
    means = {
        name: {key: float(np.mean([row[key] for row in found])) for key in found[0]}
        for name, found in rows.items()
    }
    for name, mean in means.items():
        table.add_row(name, *(f"{mean[key]:.4f}" if key in mean else "-" for key in MEASURES))
    console.print(table)
    for what in ruler.missing:
        console.print(f"left out: {what}", soft_wrap=True, markup=False)
    line = {
        "date": datetime.date.today().isoformat(), "machine": platform.processor() or platform.machine(),
        "base": Path(base).name, "device": device, "pictures": pictures, "images": images,
        "learning_rate": learning_rate, "seed": seed, "sampler": DDIM._asdict(), "means": means,
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    if sheet is not None:
        save_sheet(shown, sheet)


def save_sheet(rows: list[list[Image.Image]], path: Path) -> None:
    """A row a way, the original first."""
    width, height = rows[0][0].size
    canvas = Image.new("RGB", (width * len(rows[0]), height * len(rows)))
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            canvas.paste(picture, (j * width, i * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


if __name__ == "__main__":
    typer.run(main)
