"""Direct noise optimisation: the noises of one gallery moved until its pictures earn a higher reward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..evaluation.gallery_rewards import Reward
from .skip_gradient import gallery


def optimise_noise(
    pipeline: Any,
    prompt: str,
    eps: Tensor,
    reward: Reward,
    *,
    steps: int = 10,
    learning_rate: float = 0.01,
    norm_weight: float = 0.01,
    seed: int = 0,
    advance: Callable[[int], None] = lambda count: None,
    **how: Any,
) -> Tensor:
    """The noise of the best of steps + 1 galleries, each a step of Adam from the one before; float32 CPU.

    Maximises reward(pixels) - norm_weight * sum_i norm_penalty(eps_i) with the gradient of `gallery`; best by
    that sum, and so never worse than eps. Sample with it as `noise=Fixed(eps)`.
    eps: (N, C, h, w) to begin with, from any coupling; reward: of pixels (N, 3, H, W) in [0, 1]; seed: of
    what else the sampler draws, the same for each gallery; advance(1) is called after every gallery; how:
    class_name, start, sampler, guidance_scale and all else that `gallery` takes.
    Raises ValueError on settings out of range and on a reward as `reward_of` does.
    Source: METHODS 3, "Direct noise optimisation".
    """
    for name, setting in (("steps", steps), ("norm_weight", norm_weight)):
        if not setting >= 0:
            raise ValueError(f"{name} must be at least 0, got {setting}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    with torch.enable_grad():
        moved = eps.detach().to("cpu", torch.float32, copy=True).requires_grad_()
        optimizer = torch.optim.Adam([moved], lr=learning_rate, maximize=True)
        best, highest = moved.detach().clone(), -float("inf")
        for step in range(steps + 1):
            pixels = gallery(pipeline, prompt, moved, generator=torch.Generator().manual_seed(seed), **how)
            value = reward_of(reward, pixels).cpu() - norm_weight * norm_penalty(moved).sum()
            advance(1)
            if value.item() > highest:
                best, highest = moved.detach().clone(), value.item()
            if step < steps:
                (moved.grad,) = torch.autograd.grad(value, moved)
                optimizer.step()
    return best


def norm_penalty(eps: Tensor) -> Tensor:
    """-log of the chi density with d degrees of freedom at each noise's norm, less its least value, (N,).

    eps: (N, ...) of d > 1 values each. Zero at norm sqrt(d - 1), and near it the squared distance of the
    norm from there; half on average for standard normal noise, whatever d.
    """
    d = eps[0].numel()
    share = eps.flatten(1).square().sum(dim=1) / (d - 1)
    return (d - 1) / 2 * (share - 1 - share.log())


def reward_of(reward: Reward, pixels: Tensor) -> Tensor:
    """reward(pixels), checked; Raises ValueError unless it is one finite number with a gradient."""
    value = reward(pixels)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"reward must be a scalar tensor, got {got}")
    if not value.requires_grad:
        raise ValueError("reward must be differentiable in the pixels, got a tensor without gradient")
    if not torch.isfinite(value):
        raise ValueError(f"reward must be finite, got {float(value.detach())}")
    return value.reshape(())
