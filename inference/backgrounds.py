"""One object before new backgrounds: its noise shared and refined, the noise around it coupled to differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..evaluation.pixels import to_pictures, to_pixels
from ..pca import Sampler
from .choice import StartChoice
from .couplings import Repulsive
from .generate import batch_that_fits
from .inversion import (
    DDIM,
    DdimMap,
    Inversion,
    check_guidance,
    fitted_as,
    for_gradients,
    invert,
    noise_in,
    starts,
    with_start,
)
from .mask import latent_mask, object_mask
from .noise import Initializer, draw_noise
from .picture import fit_to_frame
from .size import picture_size

# A step of training keeps far more than one of sampling, which `batch_that_fits` is for
TRAINING_COST = 8
GRADIENTS = ("full", "skip")


@dataclass(frozen=True)
class Scenes:
    """A gallery of one object before new backgrounds.

    pictures: N of one size; original: the picture as it was fitted to that size; mask: (H, W) bool, true on
    the object. eps: (N, C, h, w) the initial noise, float32 on the CPU; inside: (h, w) bool, where it was
    refined, outside it is what the coupling drew, bit for bit. losses: (steps + 1, N) mean squared difference
    from the original on the object, pixels in [0, 1], before each step and of the pictures returned.
    """

    pictures: list[Image.Image]
    original: Image.Image
    mask: Tensor
    eps: Tensor
    inside: Tensor
    losses: Tensor
    inversion: Inversion


def scenes(
    pipeline: Any,
    image: Image.Image,
    mask: Image.Image | str | Path | None = None,
    *,
    prompt: str | Sequence[str] = "",
    source_prompt: str | None = None,
    class_name: str | None = None,
    start: str = "mean",
    images: int = 4,
    optimisation_steps: int = 50,
    learning_rate: float = 0.1,
    gradient: str = "full",
    coupling: Initializer | None = None,
    sampler: Sampler = DDIM,
    guidance_scale: float = 1.0,
    refinements: int = 0,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    batch_size: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Scenes:
    """Pictures of this object before new backgrounds, with no training and no inpainting model.

    All begin with the object's own noise, found by `invert`, and with noise around it from the coupling
    (None: Repulsive). Then each picture's noise on the object, and nothing else, takes steps of Adam
    towards the object as it is.
    gradient: "full" goes through all steps of DDIM and the decoder; "skip" through the decoder alone, as if
    DDIM only added to its noise, for the time of sampling.
    pipeline, sampler, guidance_scale, refinements, height, width: as for `invert`. mask: as for
    `object_mask`. prompt: of all pictures, or one each; source_prompt: of the image (None: the first
    prompt); class_name, start: as in the pipeline's call, the object's noise allowing for them.
    optimisation_steps: more keep the object better and vary the background less. seed: of the noise around
    the object. batch_size: pictures refined at a time, which changes memory but, rounding apart, no picture.
    advance(n) is called after every pass over n pictures, optimisation_steps + 1 of them each.
    Raises ValueError as `invert` and `object_mask` do, and on counts and rates out of range, prompts that
    are not one a picture, and a coupling that must see the network.
    Source: METHODS 3, "Fixed object, new backgrounds".
    """
    check_guidance(guidance_scale)
    prompts = _prompts(prompt, images)
    coupling = Repulsive() if coupling is None else coupling
    _check(optimisation_steps, learning_rate, gradient, coupling)
    height, width = picture_size(pipeline, height, width)
    size = {"height": height, "width": width}
    how = fitted_as(pipeline)
    original = fit_to_frame(image, height, width, **how)
    outline = object_mask(image, mask, **size, fit=how.get("fit", "crop"))
    source = prompts[0] if source_prompt is None else source_prompt
    inverted = invert(
        pipeline, original, prompt=source, class_name=class_name,
        start="none" if start == "draw" else start, sampler=sampler, refinements=refinements, **size,
    )  # fmt: skip
    _, *shape = inverted.x_T.shape
    inside = latent_mask(outline, (shape[1], shape[2]))
    generator = torch.Generator().manual_seed(seed)
    drawn = draw_noise(1, images, tuple(shape), generator, initializer=coupling)
    x_start = starts(pipeline, prompts, StartChoice(class_name, start), **size, generator=generator)

    batch_size = batch_size or max(1, batch_that_fits(inside.numel()) // TRAINING_COST)
    target = torch.from_numpy(to_pixels([original])[0]).float()
    last: list[Refined] = []
    losses: list[Tensor] = []
    with for_gradients(pipeline):
        for first in range(0, images, batch_size):
            rows = slice(first, min(first + batch_size, images))
            draw = DdimMap(pipeline, prompts[rows], **size, sampler=sampler)
            own_start = None if x_start is None else x_start[rows]
            shared = noise_in(inverted.x_T, own_start, draw.power)
            states = []
            for state in refine(
                draw, torch.where(inside, shared, drawn[rows]), own_start, inside=inside, mask=outline,
                target=target, steps=optimisation_steps, learning_rate=learning_rate, gradient=gradient,
            ):  # fmt: skip
                states.append(state.losses)
                advance(len(state.eps))
            last.append(state)
            losses.append(torch.stack(states))
    return Scenes(
        pictures=to_pictures(torch.cat([state.pixels for state in last]).clamp(0, 1)),
        original=original,
        mask=outline,
        eps=torch.cat([state.eps for state in last]),
        inside=inside,
        losses=torch.cat(losses, dim=1),
        inversion=inverted,
    )


class Refined(NamedTuple):
    """A gallery on its way: eps (N, C, h, w), its pixels (N, 3, H, W) unclamped and losses (N,)."""

    eps: Tensor
    pixels: Tensor
    losses: Tensor


def refine(
    draw: DdimMap,
    eps: Tensor,
    x_start: Tensor | None,
    *,
    inside: Tensor,
    mask: Tensor,
    target: Tensor,
    steps: int,
    learning_rate: float,
    gradient: str = "full",
) -> Iterator[Refined]:
    """The gallery before each step of Adam on the noise inside, and after the last: steps + 1 of them.

    Minimises sum ||mask * (G(eps_i) - target)||^2; Adam works entry by entry, so pictures do not mix.
    eps: (N, C, h, w) float32; inside: (h, w) bool; mask: (H, W) bool; target: (3, H, W) in [0, 1]. Yields
    float32 on the CPU. gradient: as for `scenes`. Within `for_gradients`.
    """
    device = draw.pipeline._execution_device
    eps, target, mask, inside = (tensor.to(device) for tensor in (eps, target, mask, inside))
    x_start = None if x_start is None else x_start.to(device)
    moved = eps[:, :, inside].clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=learning_rate)
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps):
            noise = eps.clone()
            noise[:, :, inside] = moved
            x_T = with_start(noise, x_start, draw.power)
            pixels = draw.pixels(draw(x_T) if gradient == "full" else _skipping(draw, x_T))
            squares = (pixels - target)[:, :, mask].square()
            # summed, not averaged: gradients of a mean over many pixels would vanish in float16
            if step < steps:
                (moved.grad,) = torch.autograd.grad(squares.sum(), moved)
                optimizer.step()
        yield Refined(*(found.detach().cpu() for found in (noise, pixels, squares.mean(dim=(1, 2)))))


def _skipping(draw: DdimMap, x_T: Tensor) -> Tensor:
    """x_0 of x_T with the gradient of x_T itself. Source: METHODS 3, "Learned couplings"."""
    with torch.no_grad():
        x_0 = draw(x_T)
    return x_0 + (x_T - x_T.detach())


def _prompts(prompt: str | Sequence[str], images: int) -> list[str]:
    if images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    prompts = [prompt] * images if isinstance(prompt, str) else list(prompt)
    if len(prompts) != images:
        raise ValueError(f"prompt must be one, or one for each of {images} images, got {len(prompts)}")
    return prompts


def _check(optimisation_steps: int, learning_rate: float, gradient: str, coupling: Any) -> None:
    if optimisation_steps < 0:
        raise ValueError(f"optimisation_steps must be at least 0, got {optimisation_steps}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
    if hasattr(coupling, "refine"):
        raise ValueError(
            f"coupling must draw noise without seeing the network, got {type(coupling).__name__}"
        )
