"""Couplings: how the initial noises of one prompt's pictures depend on each other.

Every noise stays standard normal by itself. A coupling is an initializer, `noise=` of this package's
pipelines; for one of diffusers' own, whose scheduler still multiplies by init_noise_sigma:

    latents = Repulsive().draw(4, (4, 64, 64), torch.Generator().manual_seed(0))
    pictures = pipe(prompt, num_images_per_prompt=4, latents=latents.to(pipe.device, pipe.dtype)).images

All take as many standard normal noises from the generator as there are pictures, the very ones that pictures
without a coupling start from, so galleries of one seed compare and what is drawn next stays the same;
FromMatrix takes one a column, OnSubspace what its two parts take. Source: METHODS 3, "Couplings".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from torch import Tensor

from . import coupling_matrix
from .fresh_noise import adds_noise
from .noise import Initializer
from .subspaces import Band, Channels, Directions, Mask, Projection, check_projection

__all__ = [
    "Antithetic",
    "Band",
    "Channels",
    "Directions",
    "Equicorrelated",
    "FromCorrelation",
    "FromMatrix",
    "Identical",
    "Independent",
    "Mask",
    "OnSubspace",
    "Repulsive",
    "adds_noise",
    "by_name",
]

Shape = tuple[int, ...]
Generator = torch.Generator | None


@dataclass(frozen=True)
class Independent:
    """Noises that know nothing of each other: bit for bit what pictures without a coupling start from."""

    def draw(self, num_images: int, shape: Shape, generator: Generator) -> Tensor:
        """Noise (num_images, *shape), float32 on the CPU."""
        return _standard(num_images, shape, generator)


@dataclass(frozen=True)
class Identical:
    """One noise for all pictures, that of the first."""

    def draw(self, num_images: int, shape: Shape, generator: Generator) -> Tensor:
        """Noise (num_images, *shape), float32 on the CPU."""
        return _mixed(coupling_matrix.identical_matrix(num_images), shape, generator)


@dataclass(frozen=True)
class Antithetic:
    """Pairs z, -z next to each other, independent of other pairs; draw refuses odd counts above 1."""

    def draw(self, num_images: int, shape: Shape, generator: Generator) -> Tensor:
        """Noise (num_images, *shape), float32 on the CPU."""
        return _mixed(coupling_matrix.antithetic_matrix(num_images), shape, generator)


@dataclass(frozen=True)
class Repulsive:
    """Noises as unlike each other as can be: each two have the correlation -1/(N-1), all sum to zero."""

    def draw(self, num_images: int, shape: Shape, generator: Generator) -> Tensor:
        """Noise (num_images, *shape), float32 on the CPU."""
        return _mixed(coupling_matrix.repulsive_matrix(num_images), shape, generator)


@dataclass(frozen=True)
class Equicorrelated:
    """Each two noises have the correlation rho, from -1 / (N-1), repulsive, to 1, identical.

    Raises ValueError unless rho is in [-1, 1]; draw unless it is in the range for its number of pictures.
    """

    rho: float

    def __post_init__(self) -> None:
        coupling_matrix.equicorrelated_matrix(2, self.rho)

    def draw(self, num_images: int, shape: Shape, generator: Generator) -> Tensor:
        """Noise (num_images, *shape), float32 on the CPU."""
        return _mixed(coupling_matrix.equicorrelated_matrix(num_images, self.rho), shape, generator)


@dataclass(frozen=True, eq=False)
class FromMatrix:
    """eps_i = sum_m A_im z_m of M independent z: correlations A A^T.

    A: (N, M), rows of unit norm, kept as float64; normalise: divide them by their norms first.
    Raises ValueError on other rows; draw on a number of pictures other than N.
    """

    A: Tensor
    normalise: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "A", coupling_matrix.unit_rows(self.A, normalise=self.normalise))

    def draw(self, num_images: int, shape: Shape, generator: Generator) -> Tensor:
        """Noise (num_images, *shape), float32 on the CPU."""
        if num_images != len(self.A):
            raise ValueError(f"num_images must be {len(self.A)}, the rows of the matrix, got {num_images}")
        return _mixed(self.A, shape, generator)


@dataclass(frozen=True, eq=False)
class FromCorrelation:
    """Noises i and j have the correlation Gamma_ij.

    Gamma: (N, N), symmetric, positive semidefinite, of unit diagonal. Raises ValueError on any other; draw
    on a number of pictures other than N. A: Gamma's symmetric root.
    """

    Gamma: Tensor
    A: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "A", coupling_matrix.correlation_root(self.Gamma))

    def draw(self, num_images: int, shape: Shape, generator: Generator) -> Tensor:
        """Noise (num_images, *shape), float32 on the CPU."""
        return FromMatrix(self.A).draw(num_images, shape, generator)


@dataclass(frozen=True)
class OnSubspace:
    """eps = P xi + (I - P) zeta: one coupling on what a projection keeps, another, independent, on the rest.

    projection: Mask, Channels, Band, Directions, or an orthogonal projection P of latents (B, C, H, W) as a
    function; inside, outside: what draws xi and zeta, each possibly an OnSubspace again.
    Raises ValueError on anything else and on parts that must see the network; draw on a function that is no
    orthogonal projection.
    """

    projection: Projection
    inside: Initializer
    outside: Initializer

    def __post_init__(self) -> None:
        if isinstance(self.projection, Tensor) or not callable(self.projection):
            kinds = "Mask, Channels, Band, Directions or a function"
            raise ValueError(f"projection must be {kinds}, got {type(self.projection).__name__}")
        for name in ("inside", "outside"):
            part = getattr(self, name)
            if not callable(getattr(part, "draw", None)):
                raise ValueError(f"{name} must have a method draw, got {type(part).__name__}")
            if hasattr(part, "refine"):
                raise ValueError(
                    f"{name} must draw noise without seeing the network, got {type(part).__name__} "
                    "(which may hold the OnSubspace instead)"
                )

    def draw(self, num_images: int, shape: Shape, generator: Generator) -> Tensor:
        """Noise (num_images, *shape), float32 on the CPU."""
        xi, zeta = (part.draw(num_images, shape, generator).double() for part in (self.inside, self.outside))
        if not isinstance(self.projection, Mask | Channels | Band | Directions):
            check_projection(self.projection, shape)
        # in this order a mask's noise is xi or zeta bit for bit
        return (self.projection(xi) + (zeta - self.projection(zeta))).float()


NAMES: dict[str, Callable[[], Initializer]] = {
    "independent": Independent, "identical": Identical, "antithetic": Antithetic, "repulsive": Repulsive,
}  # fmt: skip


def by_name(text: str) -> Initializer:
    """The coupling that a name means: independent, identical, antithetic, repulsive, or rho=NUMBER.

    Raises ValueError, with the nearest name, on any other.
    """
    name, equals, value = text.strip().lower().partition("=")
    if name == "rho" and equals:
        try:
            rho = float(value)
        except ValueError:
            raise ValueError(f"rho must be a number, got {value!r}") from None
        return Equicorrelated(rho)
    if name in NAMES and not equals:
        return NAMES[name]()
    nearest = get_close_matches(name, [*NAMES, "rho"], n=1)
    hint = f" (nearest: {nearest[0]})" if nearest else ""
    raise ValueError(f"coupling must be one of {', '.join(NAMES)} or rho=NUMBER{hint}, got {text!r}")


def _standard(num_images: int, shape: Shape, generator: Generator) -> Tensor:
    return torch.randn(num_images, *shape, generator=generator)


def _mixed(matrix: Tensor, shape: Shape, generator: Generator) -> Tensor:
    return coupling_matrix.apply(matrix, _standard(matrix.shape[1], shape, generator))
