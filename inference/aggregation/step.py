"""One step of several models together: combining what they drew, and keeping each near its own mean."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

KINDS = ("nested", "authors", "slerp", "rescaled")
# weights and step sizes of the paper: 45 and 55, or 45, 40 and 35, at d = 128 * 128
PAPER = {
    2: ((0.5,), (45 / 128, 55 / 128)),
    3: ((0.47, 0.5), (45 / 128, 40 / 128, 35 / 128)),
}


def coefficients(weights: Sequence[float], kind: str = "nested") -> list[float]:
    """What each of N models counts in the sum, from N - 1 weights.

    "nested", and its other form "rescaled": `w_2 (w_1 x_1 + sqrt(1-w_1^2) x_2) + sqrt(1-w_2^2) x_3`, the
    squares of which add up to 1. "authors": the script of the paper's authors for three models,
    `w_1 w_2 x_1 + sqrt(1-w_1^2) (w_2 x_2 + sqrt(1-w_2^2) x_3)`, whose squares do not.
    Raises ValueError on a weight outside [0, 1], on an unknown kind or one without fixed coefficients, and on
    another number of models for "authors".
    """
    check_weights(weights, kind)
    if kind == "slerp":
        raise ValueError("kind must be nested, authors or rescaled to have coefficients, got 'slerp'")
    if kind == "authors":
        (w_1, w_2), rest = weights, math.sqrt(1 - weights[0] ** 2)
        return [w_1 * w_2, rest * w_2, rest * math.sqrt(1 - w_2**2)]
    shares = [1.0]
    for w in weights:
        shares = [w * share for share in shares] + [math.sqrt(1 - w**2)]
    return shares


def check_weights(weights: Sequence[float], kind: str) -> None:
    """Refuses what `combine` cannot use. Raises ValueError."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    for w in weights:
        if not 0 <= w <= 1:
            raise ValueError(f"weights must be in [0, 1], got {w}")
    if kind == "authors" and len(weights) != 2:
        raise ValueError(f"kind 'authors' must have three models and two weights, got {len(weights)}")


def combine(x: Sequence[Tensor] | Tensor, weights: Sequence[float], kind: str = "nested") -> Tensor:
    """The aggregate x' (B, C, H, W) of what N models drew for the same step.

    x: N of (B, C, H, W) noisy latents, float32 or better; weights: N - 1 in [0, 1], the first model's own
    against the second, then both against the third, and so on.
    kind: "nested" and "authors" are sums with `coefficients`; "nested" keeps the length of vectors that are
    orthogonal, and makes two identical ones w + sqrt(1-w^2) times as long; "slerp" turns by the angle that
    the vectors of each sample really have, and is "nested" where that is a right one; "rescaled" is "nested"
    with each sample brought to the length that "nested" gives to orthogonal ones.
    Raises ValueError on another number of weights and as `coefficients` does.
    Source: METHODS 5; the paper's eq. 9.
    """
    check_weights(weights, kind)
    if len(weights) != len(x) - 1:
        raise ValueError(f"weights must be {len(x) - 1}, one fewer than models, got {len(weights)}")
    if kind == "slerp":
        x_prime = x[0]
        for x_i, w in zip(x[1:], weights, strict=True):
            x_prime = _slerp(x_prime, x_i, w)
        return x_prime
    shares = coefficients(weights, kind)
    x_prime = shares[0] * x[0]
    for share, x_i in zip(shares[1:], x[1:], strict=True):
        x_prime = x_prime + share * x_i
    return rescaled(x_prime, x, shares) if kind == "rescaled" else x_prime


def rescaled(x_prime: Tensor, x: Sequence[Tensor] | Tensor, shares: Sequence[float]) -> Tensor:
    """x' with each sample as long as the sum `shares` of x would be, were x orthogonal.

    x_prime: (B, C, H, W); x: N of the same shape. A sample of length 0 stays.
    """
    length = sum((share * _norm(x_i)) ** 2 for share, x_i in zip(shares, x, strict=True)) ** 0.5
    own = _norm(x_prime)
    return x_prime * torch.where(own > 0, length / own, 1.0)


def correct(x_prime: Tensor, means: Sequence[Tensor] | Tensor, step_sizes: Sequence[float]) -> Tensor:
    """x' moved towards each model's mean, by its step size and never past the mean: (N, B, C, H, W).

    x_prime: (B, C, H, W); means: N of the same shape; step_sizes: N, in units of sqrt(d), d the number of
    values of one sample. Each sample goes its own distance; one that is at the mean stays.
    Raises ValueError on a negative step size and on another number of them.
    Source: METHODS 5; the paper's eq. 10.
    """
    check_step_sizes(step_sizes, len(means))
    root = math.sqrt(x_prime[0].numel())
    moved = []
    for mean, step_size in zip(means, step_sizes, strict=True):
        distance = _norm(x_prime - mean)
        share = torch.where(distance > 0, step_size * root / distance, 0.0).clamp(max=1)
        moved.append(torch.lerp(x_prime, mean, share))  # exact at both ends
    return torch.stack(moved)


def check_step_sizes(step_sizes: Sequence[float], models: int) -> None:
    """Refuses what `correct` cannot use. Raises ValueError."""
    if len(step_sizes) != models:
        raise ValueError(f"step_sizes must be {models}, one a model, got {len(step_sizes)}")
    for size in step_sizes:
        if not size >= 0:
            raise ValueError(f"step_sizes must be at least 0, got {size}")


def mean_of_step(
    scheduler: Any,
    stepped: tuple[Tensor, Tensor],
    model_output: Tensor,
    timestep: Any,
    sample: Tensor,
    *,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
) -> Tensor:
    """The mean (B, C, H, W) of the Gaussian that a scheduler's step drew from.

    scheduler: DDIM or DDPM with its timesteps set; stepped: what its step returned without return_dict, the
    next latents and the predicted x_0; the others: what the step was called with.
    Without noise, DDIM at eta 0, that is the step's own output.
    Raises ValueError on another scheduler.
    """
    check_scheduler(scheduler)
    if isinstance(scheduler, DDPMScheduler):
        return _posterior_mean(scheduler, stepped[1], int(timestep), sample)
    if eta == 0:
        return stepped[0]
    how = {"eta": eta, "use_clipped_model_output": use_clipped_model_output, "return_dict": False}
    silent = torch.zeros_like(model_output)
    return scheduler.step(model_output, timestep, sample, variance_noise=silent, **how)[0]


def check_scheduler(scheduler: Any, owner: str = "") -> None:
    """Refuses schedulers whose steps have no known mean. owner: whose, for the error. Raises ValueError."""
    if not isinstance(scheduler, DDIMScheduler | DDPMScheduler):
        raise ValueError(
            f"scheduler{owner} must be DDIMScheduler or DDPMScheduler, whose steps have a known mean, "
            f"got {type(scheduler).__name__}"
        )


def _posterior_mean(scheduler: DDPMScheduler, x_0: Tensor, t: int, x_t: Tensor) -> Tensor:
    """The mean of x_(t-1) given x_t and x_0. Source: DDPM (arXiv 2006.11239), eq. 7."""
    before = int(scheduler.previous_timestep(t))
    a = float(scheduler.alphas_cumprod[t])
    a_before = float(scheduler.alphas_cumprod[before]) if before >= 0 else 1.0
    kept = a / a_before
    of_x_0 = math.sqrt(a_before) * (1 - kept) / (1 - a)
    return of_x_0 * x_0 + math.sqrt(kept) * (1 - a_before) / (1 - a) * x_t


def _slerp(x: Tensor, y: Tensor, w: float) -> Tensor:
    """From y (w = 0) to x (w = 1) along the arc between them, each sample along its own."""
    part = 2 / math.pi * math.acos(w)
    unit_x, unit_y = (v / _norm(v).clamp(min=torch.finfo(v.dtype).tiny) for v in (x, y))
    angle = 2 * torch.atan2(_norm(unit_x - unit_y), _norm(unit_x + unit_y))
    curved = torch.sin(angle) > 1e-4  # else parallel: the arc is a straight line
    safe = torch.where(curved, torch.sin(angle), 1.0)
    of_x = torch.where(curved, torch.sin((1 - part) * angle) / safe, 1 - part)
    of_y = torch.where(curved, torch.sin(part * angle) / safe, part)
    return of_x * x + of_y * y


def _norm(x: Tensor) -> Tensor:
    """The length of each sample, (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
