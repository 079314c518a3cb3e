"""The initial noise of a call: float32 on the CPU, one draw a prompt, from any initializer."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


class Initializer(Protocol):
    """A source of initial noise for the pictures of one prompt."""

    def draw(self, num_images: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Noise (num_images, *shape), float32 on the CPU, each picture standard normal."""
        ...


def draw_noise(
    num_prompts: int,
    num_images: int,
    shape: tuple[int, ...],
    generator: Generators = None,
    *,
    initializer: Initializer | None = None,
) -> Tensor:
    """Noise (num_prompts * num_images, *shape), float32 on the CPU, a prompt's pictures next to each other.

    generator: one for all, used prompt by prompt, or a list with one a picture (not with an initializer).
    Raises ValueError on a generator that is not on the CPU, on a list of another length or beside an
    initializer, and on an initializer that breaks its protocol.
    """
    if isinstance(generator, Sequence):
        total, got = num_prompts * num_images, len(generator)
        if initializer is not None:
            raise ValueError(
                f"generator must be a single one beside noise, which couples pictures, got a list of {got}"
            )
        if got != total:
            raise ValueError(f"generator must be one, or one for each of {total} pictures, got {got}")
    for g in generator if isinstance(generator, Sequence) else [generator]:
        if g is not None and g.device.type != "cpu":
            raise ValueError(
                f"generator must be on the CPU, where a seed always means the same, got {g.device}"
            )
    if isinstance(generator, Sequence):
        return torch.cat([torch.randn(1, *shape, generator=g) for g in generator])
    if initializer is None:
        return torch.cat([torch.randn(num_images, *shape, generator=generator) for _ in range(num_prompts)])
    return torch.cat([_checked_draw(initializer, num_images, shape, generator) for _ in range(num_prompts)])


def _checked_draw(
    initializer: Initializer, num_images: int, shape: tuple[int, ...], generator: torch.Generator | None
) -> Tensor:
    if not callable(getattr(initializer, "draw", None)):
        raise ValueError(
            f"noise must have a method draw(num_images, shape, generator), got {type(initializer).__name__}"
        )
    eps = initializer.draw(num_images, shape, generator)
    if tuple(eps.shape) != (num_images, *shape) or eps.dtype != torch.float32 or eps.device.type != "cpu":
        raise ValueError(
            f"noise.draw must return float32 on the CPU shaped {(num_images, *shape)}, "
            f"got {eps.dtype} on {eps.device} shaped {tuple(eps.shape)}"
        )
    return eps
