"""The plane through three initial noises: whose picture each point draws, and how abruptly it turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..evaluation.contact_sheet import INK, MARGIN, PAPER, QUIET
from ..evaluation.similarity import Descriptor
from .generate import generate
from .skip_gradient import Fixed

CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))  # (alpha, beta) of the three noises
EDGE = 420  # pixels the longer side of the plane has, about
COLOURS = ((38, 24, 74), (46, 88, 148), (54, 152, 142), (150, 198, 98), (252, 232, 120))  # from 0 to 1
TICKS = 5

Draw = Callable[[Tensor], Sequence[Image.Image]]


class NoisePlane(NamedTuple):
    """What is drawn at the points alphas[j], betas[i] of the plane through three noises.

    scores: (rows, columns), the highest cosine with the picture of one of the three; nearest: which, 0 to 2;
    slopes: (rows, columns), how far the descriptor moves a unit of noise, as `slope` says.
    """

    alphas: Tensor
    betas: Tensor
    scores: Tensor
    nearest: Tensor
    slopes: Tensor


def noise_plane(
    draw: Draw,
    describe: Descriptor,
    corners: Tensor,
    *,
    alphas: Tensor | Sequence[float],
    betas: Tensor | Sequence[float],
    unit_variance: bool = False,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda count: None,
) -> NoisePlane:
    """Draws the points of the plane through corners (3, C, H, W) and compares them with those of the corners.

    draw: noise (B, C, H, W) to B pictures, deterministic, as `drawing` makes one; describe: pictures to
    features, SSCD for the paper's scores; alphas, betas, unit_variance: as `plane_noises` takes them;
    advance(n) is called after every n pictures, of rows * columns + 3.
    Raises ValueError as `plane_noises`, and on a number of pictures or features other than asked for.
    Source: METHODS 6, "Noise plane".
    """
    alphas, betas = (torch.as_tensor(axis, dtype=torch.float32) for axis in (alphas, betas))
    noises = plane_noises(corners, alphas, betas, unit_variance=unit_variance)
    asked = torch.cat([corners.to(noises), noises.flatten(0, 1)])
    found = []
    for eps in asked.split(batch_size):
        rows = describe(draw(eps))
        if rows.ndim != 2 or len(rows) != len(eps):
            raise ValueError(f"features must be of shape ({len(eps)}, D), got {tuple(rows.shape)}")
        found.append(torch.nn.functional.normalize(rows.cpu().double(), dim=1))
        advance(len(eps))
    features = torch.cat(found)
    scores, nearest = (features[3:] @ features[:3].T).max(dim=1)
    size = (len(betas), len(alphas))
    return NoisePlane(
        alphas,
        betas,
        scores=scores.view(size),
        nearest=nearest.view(size),
        slopes=slope(features[3:].view(*size, -1), noises),
    )


def plane_noises(corners: Tensor, alphas: Tensor, betas: Tensor, *, unit_variance: bool = False) -> Tensor:
    """eps_1 + alpha (eps_2 - eps_1) + beta (eps_3 - eps_1), (rows, columns, C, H, W): a row a beta.

    corners: eps_1 to eps_3 (3, C, H, W); alphas, betas: rising values. Between the corners such noise is
    weaker than standard normal, at their centre a third of its variance; unit_variance divides by its
    standard deviation (of independent corners), which bends the plane into a sphere's surface.
    Raises ValueError on corners of another shape or equal ones, and on values that do not rise.
    """
    if corners.ndim != 4 or len(corners) != 3:
        raise ValueError(f"corners must be of shape (3, C, H, W), got {tuple(corners.shape)}")
    for name, axis in (("alphas", alphas), ("betas", betas)):
        if axis.ndim != 1 or not len(axis) or not bool((axis.diff() > 0).all()):
            raise ValueError(f"{name} must be a list of rising values, got {axis.tolist()}")
    if bool((corners[1:] == corners[0]).flatten(1).all(dim=1).any()):
        raise ValueError("corners must be three different noises, got equal ones")
    b, a = torch.meshgrid(betas, alphas, indexing="ij")
    shares = torch.stack([1 - a - b, a, b], dim=2)
    if unit_variance:
        shares = shares / shares.norm(dim=2, keepdim=True)
    return torch.einsum("ijk,kchw->ijchw", shares.to(corners), corners)


def slope(values: Tensor, noises: Tensor) -> Tensor:
    """At each point the largest |change of value| / |change of noise| towards a neighbour, (rows, columns).

    values: (rows, columns) or (rows, columns, ...); noises: (rows, columns, ...). The highest is a lower
    bound of the Lipschitz constant on the plane. Zero where there is no neighbour.
    """
    size = values.shape[:2]
    values, noises = (each.double().reshape(*size, -1) for each in (values, noises))
    steepest = torch.zeros(size, dtype=torch.float64)
    for axis in (0, 1):
        rises = values.diff(dim=axis).norm(dim=2) / noises.diff(dim=axis).norm(dim=2)
        for first in (0, 1):  # the point before the difference, then the one behind it
            side = steepest.narrow(axis, first, rises.shape[axis])
            side.copy_(torch.maximum(side, rises))
    return steepest


def drawing(pipeline: Any, prompt: str, **how: Any) -> Draw:
    """The map from noise (B, C, H, W) to a pipeline's pictures of this prompt.

    how: class_names (a list of one), start, sampler, guidance_scale and all else that `generate` takes;
    its own default sampler, DDIM, is deterministic.
    """

    def draw(eps: Tensor) -> list[Image.Image]:
        return generate(pipeline, [prompt], count=len(eps), noise=Fixed(eps), **how)

    return draw


def plane_picture(
    plane: NoisePlane, *, values: Tensor | None = None, highest: float = 1.0, title: str = ""
) -> Image.Image:
    """The plane in colour, the three noises marked and numbered, lines where the nearest of them changes.

    values: (rows, columns) to show, from 0 to highest; the scores if None. alpha runs to the right, beta
    upwards. Returns an RGB picture. Raises ValueError on values of another shape and a highest of 0 or less.
    """
    values = plane.scores if values is None else values
    if values.shape != plane.scores.shape:
        raise ValueError(f"values must be of shape {tuple(plane.scores.shape)}, got {tuple(values.shape)}")
    if not highest > 0:
        raise ValueError(f"highest must be positive, got {highest}")
    rows, columns = values.shape
    cell = max(4, EDGE // max(rows, columns))
    width, height = columns * cell, rows * cell
    font, large = ImageFont.load_default(14), ImageFont.load_default(18)
    left, top = MARGIN + 52, MARGIN + (34 if title else 0) + 22
    full = max(left + width + 106, round(large.getlength(title)) + 2 * MARGIN)
    sheet = Image.new("RGB", (full, top + height + 58), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 6), title, INK, font=large)
    shown = Image.fromarray(_colours(values.flip(0) / highest))
    sheet.paste(shown.resize((width, height), Image.Resampling.NEAREST), (left, top))
    _draw_borders(pen, plane.nearest.flip(0), left=left, top=top, cell=cell)
    pen.rectangle((left - 1, top - 1, left + width, top + height), outline=QUIET)

    for index in _ticks(columns):
        x = left + (index + 0.5) * cell
        pen.line((x, top + height, x, top + height + 5), QUIET)
        pen.text((x, top + height + 8), _label(plane.alphas[index]), INK, font=font, anchor="ma")
    for index in _ticks(rows):
        y = top + height - (index + 0.5) * cell
        pen.line((left - 6, y, left - 1, y), QUIET)
        pen.text((left - 9, y), _label(plane.betas[index]), INK, font=font, anchor="rm")
    pen.text((left + width / 2, top + height + 28), "alpha", QUIET, font=font, anchor="ma")
    pen.text((left - 9, top - 6), "beta", QUIET, font=font, anchor="rd")
    for number, (alpha, beta) in enumerate(CORNERS, start=1):
        column, row = _place(plane.alphas, alpha), _place(plane.betas, beta)
        if column is not None and row is not None:
            _mark(pen, left + column * cell, top + height - row * cell, str(number))
    _draw_scale(sheet, left=left + width + 24, top=top, height=height, highest=highest)
    return sheet


def _colours(values: Tensor) -> np.ndarray:
    at = values.detach().cpu().double().clamp(0, 1).numpy()
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(at, stops, channel) for channel in zip(*COLOURS, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _draw_borders(pen: ImageDraw.ImageDraw, nearest: Tensor, *, left: int, top: int, cell: int) -> None:
    for row, column in (nearest.diff(dim=1) != 0).nonzero().tolist():
        x, y = left + (column + 1) * cell, top + row * cell
        pen.line((x, y, x, y + cell), "white", width=2)
    for row, column in (nearest.diff(dim=0) != 0).nonzero().tolist():
        x, y = left + column * cell, top + (row + 1) * cell
        pen.line((x, y, x + cell, y), "white", width=2)


def _draw_scale(sheet: Image.Image, *, left: int, top: int, height: int, highest: float) -> None:
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    steps = torch.linspace(1, 0, height)[:, None]
    sheet.paste(Image.fromarray(_colours(steps)).resize((18, height)), (left, top))
    pen.rectangle((left - 1, top - 1, left + 18, top + height), outline=QUIET)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + (1 - share) * (height - 1)
        pen.text((left + 26, y), _label(share * highest), INK, font=font, anchor="lm")


def _mark(pen: ImageDraw.ImageDraw, x: float, y: float, text: str) -> None:
    pen.ellipse((x - 10, y - 10, x + 10, y + 10), fill=PAPER, outline=INK, width=2)
    pen.text((x, y), text, INK, font=ImageFont.load_default(14), anchor="mm")


def _place(axis: Tensor, value: float) -> float | None:
    """Where on an axis a value lies, in cells from its beginning; None beyond it."""
    if not float(axis[0]) <= value <= float(axis[-1]):
        return None
    return float(np.interp(value, axis.numpy(), np.arange(len(axis)))) + 0.5


def _label(value: Tensor | float) -> str:
    return f"{round(float(value), 3) + 0.0:.3g}"  # 0 added, so that there is no "-0"


def _ticks(count: int) -> list[int]:
    return sorted({round(i * (count - 1) / (TICKS - 1)) for i in range(TICKS)})
