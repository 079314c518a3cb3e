"""Learning the matrix of a coupling: projected gradient ascent on the expected reward of a gallery."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..evaluation.gallery_rewards import Reward
from ..inference.coupling_matrix import apply
from ..inference.learned import LearnedCoupling, prompts_fingerprint
from ..inference.noise_optimisation import reward_of
from ..inference.size import picture_size
from ..inference.skip_gradient import gallery
from ..pca import Sampler

INITS = ("identity", "random")


def learn_coupling(
    pipeline: Any,
    prompts: Sequence[str],
    reward: Reward,
    *,
    images: int,
    noises: int | None = None,
    steps: int = 100,
    learning_rate: float = 0.05,
    init: str = "identity",
    class_names: Sequence[str | None] | None = None,
    sampler: Sampler = Sampler("DDIMScheduler", 20),
    guidance_scale: float = 3.0,
    prompts_per_step: int = 1,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
    **how: Any,
) -> LearnedCoupling:
    """The coupling A (N, M) under which galleries of N pictures earn the highest expected reward.

    Each step draws fresh z (M, C, h, w) for each of its prompts, makes the gallery of eps = A z, and takes a
    step of Adam along the gradient's part at right angles to A's rows, which are scaled back to unit norm.
    learning_rate: of the first step; it falls to zero by a cosine.
    prompts: every one is used before any is used again; reward: of pixels (N, 3, H, W) in [0, 1];
    images, noises: N and M, N if None; init: A's rows are those of the identity (M at least N) or random;
    class_names: one a prompt; seed: of A, z, the prompts' order and the sampler's own noise; height, width:
    in pixels, the pipeline's own if None; advance(1) is called after every step; how: start,
    scheduler_config and all else that `gallery` takes.
    Returns the last A, with the mean reward of every step, taken before it.
    Raises ValueError on settings out of range and on a reward as `reward_of` does.
    Source: METHODS 3, "Learned couplings".
    """
    _check(prompts, class_names, images, steps, learning_rate, prompts_per_step)
    factor, size = pipeline.vae_scale_factor, picture_size(pipeline, height, width)
    shape = (pipeline.vae.config.latent_channels, *(side // factor for side in size))
    generator = torch.Generator().manual_seed(seed)
    matrix = _first_matrix(images, images if noises is None else noises, init, generator)
    optimizer = torch.optim.Adam([matrix], lr=learning_rate, maximize=True)
    # down to zero, for the last matrix would else shake with the last prompts' noise
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    order, history = _order(len(prompts), generator), []
    how |= {"sampler": sampler, "guidance_scale": guidance_scale}
    for _ in range(steps):
        rewards, gradient = [], torch.zeros_like(matrix)
        for _ in range(prompts_per_step):
            chosen = next(order)
            class_name = None if class_names is None else class_names[chosen]
            z = torch.randn(matrix.shape[1], *shape, generator=generator)
            with torch.enable_grad():
                eps = apply(matrix, z)
                pixels = gallery(
                    pipeline, prompts[chosen], eps, class_name=class_name, generator=generator, **how
                )
                value = reward_of(reward, pixels)
                gradient += torch.autograd.grad(value, matrix)[0] / prompts_per_step
            rewards.append(float(value.detach()))
        history.append(sum(rewards) / prompts_per_step)
        matrix.grad = along_sphere(gradient, matrix.detach())
        optimizer.step()
        decay.step()
        with torch.no_grad():
            matrix.copy_(functional.normalize(matrix, dim=1))
        advance(1)
    return LearnedCoupling(
        matrix.detach().clone(),
        reward=getattr(reward, "__name__", type(reward).__name__),
        base_model=_name(pipeline),
        prompts=prompts_fingerprint(prompts),
        history=tuple(history),
        settings={
            "steps": steps, "learning_rate": learning_rate, "init": init, "seed": seed,
            "prompts_per_step": prompts_per_step, "sampler": list(sampler), "guidance_scale": guidance_scale,
            "height": size[0], "width": size[1],
        },
    )  # fmt: skip


def along_sphere(gradient: Tensor, rows: Tensor) -> Tensor:
    """The gradient (N, M) without its part along each row, for rows of unit norm: what keeps the norm."""
    return gradient - (gradient * rows).sum(dim=1, keepdim=True) * rows


def _first_matrix(images: int, noises: int, init: str, generator: torch.Generator) -> Tensor:
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    least = images if init == "identity" else 1
    if noises < least:
        where = f"{images} images from the identity" if init == "identity" else "a random init"
        raise ValueError(f"noises must be at least {least} for {where}, got {noises}")
    if init == "identity":
        matrix = torch.eye(images, noises, dtype=torch.float64)
    else:
        drawn = torch.randn(images, noises, generator=generator, dtype=torch.float64)
        matrix = functional.normalize(drawn, dim=1)
    return matrix.requires_grad_()


def _order(count: int, generator: torch.Generator) -> Iterator[int]:
    """Places of prompts, in a new order each time round."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _name(pipeline: Any) -> str:
    """What the pipeline was loaded from: a hub id, or a folder's name without the way there."""
    name = str(pipeline.config.get("_name_or_path") or "")
    return Path(name).name if Path(name).exists() else name


def _check(
    prompts: Sequence[str],
    class_names: Sequence[str | None] | None,
    images: int,
    steps: int,
    learning_rate: float,
    prompts_per_step: int,
) -> None:
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts must be a list of at least one prompt, got {prompts!r}")
    if class_names is not None and len(class_names) != len(prompts):
        got = len(class_names)
        raise ValueError(f"class_names must be one for each of {len(prompts)} prompts, got {got}")
    for name, value, least in (("images", images, 2), ("steps", steps, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if prompts_per_step < 1:
        raise ValueError(f"prompts_per_step must be at least 1, got {prompts_per_step}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
