"""Matrices that couple noises: eps = (A kron I) z with unit rows, and so Cov(eps_i, eps_j) = (A A^T)_ij I."""

from __future__ import annotations

import torch
from torch import Tensor

# of a row's norm, a correlation's diagonal and its smallest eigenvalue: float32 files are this exact
TOLERANCE = 1e-5


def identical_matrix(num_images: int) -> Tensor:
    """(N, N) float64: every picture takes the first noise."""
    matrix = torch.zeros(_checked(num_images), num_images, dtype=torch.float64)
    matrix[:, 0] = 1
    return matrix


def antithetic_matrix(num_images: int) -> Tensor:
    """(N, N) float64: neighbours take z and -z, pairs are independent of each other; N = 1 is left alone.

    Raises ValueError on an odd N above 1.
    """
    if _checked(num_images) % 2 and num_images > 1:
        raise ValueError(f"num_images must be even for antithetic noise, got {num_images}")
    first = torch.arange(num_images) // 2 * 2
    matrix = torch.zeros(num_images, num_images, dtype=torch.float64)
    matrix[torch.arange(num_images), first] = 1.0 - 2 * (torch.arange(num_images) % 2).double()
    return matrix


def repulsive_matrix(num_images: int) -> Tensor:
    """(N, N) float64: sqrt(N/(N-1)) (I - J/N), noises that sum to zero; N = 1 is left alone.

    No coupling has a lower largest correlation than its -1/(N-1). Source: METHODS 3, "Couplings".
    """
    if _checked(num_images) == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    return equicorrelated_matrix(num_images, -1 / (num_images - 1))


def equicorrelated_matrix(num_images: int, rho: float) -> Tensor:
    """(N, N) float64: sqrt(1-rho) (I - J/N) + sqrt(1+(N-1)rho) J/N; N = 1 is left alone.

    Raises ValueError unless rho is in [-1/(N-1), 1]. Source: METHODS 3, "Couplings".
    """
    lowest = -1 / (num_images - 1) if _checked(num_images) > 1 else -1.0
    if not lowest - TOLERANCE <= rho <= 1:
        raise ValueError(f"rho must be between {lowest:.6g} and 1 for {num_images} pictures, got {rho:g}")
    mean = torch.full((num_images, num_images), 1 / num_images, dtype=torch.float64)
    apart = torch.eye(num_images, dtype=torch.float64) - mean
    return (1 - rho) ** 0.5 * apart + max(0.0, 1 + (num_images - 1) * rho) ** 0.5 * mean


def correlation_root(Gamma: Tensor) -> Tensor:
    """The symmetric root A (N, N) float64 of a correlation matrix: A A^T = Gamma.

    Gamma: (N, N), symmetric, positive semidefinite, of unit diagonal. Raises ValueError on any other.
    """
    Gamma = torch.as_tensor(Gamma).detach().cpu().double()
    if Gamma.ndim != 2 or Gamma.shape[0] != Gamma.shape[1] or not len(Gamma):
        raise ValueError(f"correlation matrix must be square, got shape {tuple(Gamma.shape)}")
    if not torch.isfinite(Gamma).all():
        raise ValueError("correlation matrix must be finite, got entries that are not")
    difference = float((Gamma - Gamma.T).abs().max())
    if difference > TOLERANCE:
        raise ValueError(f"correlation matrix must be symmetric, got entries {difference:.6g} apart")
    row = int((Gamma.diagonal() - 1).abs().argmax())
    own = float(Gamma[row, row])
    if abs(own - 1) > TOLERANCE:
        raise ValueError(f"correlation matrix must have ones on its diagonal, got {own:.6g} in row {row}")
    values, vectors = torch.linalg.eigh((Gamma + Gamma.T) / 2)
    lowest = float(values[0])
    if lowest < -TOLERANCE:
        raise ValueError(f"correlation matrix must be positive semidefinite, got the eigenvalue {lowest:.6g}")
    return unit_rows(vectors * values.clamp(min=0).sqrt() @ vectors.T, normalise=True)


def interpolate(Gamma: Tensor, s: float) -> Tensor:
    """(1 - s) I + s Gamma: from independent at s = 0 to the correlation matrix Gamma (N, N) at s = 1.

    Raises ValueError unless s is in [0, 1]. Source: METHODS 3, "Couplings".
    """
    if not 0 <= s <= 1:
        raise ValueError(f"s must be between 0 and 1, got {s:g}")
    Gamma = torch.as_tensor(Gamma).double()
    return (1 - s) * torch.eye(len(Gamma), dtype=torch.float64, device=Gamma.device) + s * Gamma


def unit_rows(A: Tensor, *, normalise: bool = False) -> Tensor:
    """A (N, M) as float64 on the CPU, once its rows are known to have unit norm, or made to have it.

    Raises ValueError, with the row, on a norm of zero and, unless normalise is set, on any but 1.
    """
    A = torch.as_tensor(A).detach().cpu().double()
    if A.ndim != 2 or 0 in A.shape:
        raise ValueError(f"matrix must be (N, M), got shape {tuple(A.shape)}")
    norms = A.norm(dim=1)
    for row, norm in enumerate(norms.tolist()):
        wrong = not 0 < norm < float("inf") if normalise else not abs(norm - 1) <= TOLERANCE
        if wrong:
            rule = "a norm above zero" if normalise else "unit norm"
            raise ValueError(f"rows of the matrix must have {rule}, got {norm:.6g} in row {row}")
    return A / norms[:, None] if normalise else A


def apply(A: Tensor, z: Tensor) -> Tensor:
    """(A kron I) z: the noises (N, *shape) that A (N, M) mixes from z (M, *shape); float32.

    Summed in float64, so that no machine's order of summing shows. Gradients flow to A and z.
    Raises ValueError unless A has a column for each of z's noises.
    """
    if A.shape[-1] != len(z):
        raise ValueError(f"z must hold {A.shape[-1]} noises, one a column of the matrix, got {len(z)}")
    mixed = A.to(z.device, torch.float64) @ z.flatten(1).double()
    return mixed.reshape(len(A), *z.shape[1:]).float()


def _checked(num_images: int) -> int:
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    return num_images
