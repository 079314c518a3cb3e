"""Leading axes of scatter matrices that are too large to hold, from their products with blocks of columns."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from .statistics import Axes, finished_axes

Key = TypeVar("Key")

EXTRA = 8  # columns of a block beyond the axes wanted
MAX_PASSES = 8
TOLERANCE = 5e-4  # residual of an axis, as a part of its eigenvalue
ROUNDING = 1e-6  # the same as a part of the largest: float32 products reach no further
ORTHOGONAL = 1e-10
NEGLIGIBLE = 1e-7  # an eigenvalue that float32 cannot tell from 0, as a part of the largest


def leading_axes(
    apply: Callable[[dict[Key, Tensor]], Mapping[Key, Tensor]],
    keys: Iterable[Key],
    d: int,
    k: int,
    *,
    converged: int | None = None,
    agree: Callable[[Tensor], Tensor] = torch.clone,
    device: str | torch.device = "cpu",
) -> dict[Key, Axes]:
    """The k leading axes of the (d, d) matrix S of each key, by block Krylov iteration with Rayleigh-Ritz.

    apply: from blocks of columns Q (d, b) float32 by key to the products S Q, (d, b) float64; it is called
    with all keys that are not done, so that one pass over the pictures serves them all, at most MAX_PASSES
    times. A key is done when the residuals |S v - l v| of its leading axes, `converged` of them (all if
    None), are at most TOLERANCE * l, or ROUNDING * l_1 where that is more. agree: from this process's view
    of which keys are done, int64, to the one that holds for all.
    """
    searches = {key: _Search(d, k, converged or k, device) for key in keys}
    blocks = {key: search.start() for key, search in searches.items()}
    found: dict[Key, Axes] = {}
    while blocks:
        for key, product in apply(blocks).items():
            searches[key].take(product)
        done = agree(torch.tensor([int(searches[key].done) for key in blocks])).tolist()
        found |= {key: searches.pop(key).finish() for key, over in zip(blocks, done, strict=True) if over}
        blocks = {key: search.following() for key, search in searches.items()}
    return found


class _Search:
    """The iteration for one matrix: an orthonormal basis (d, m) and its product with S, both float64."""

    def __init__(self, d: int, k: int, converged: int, device: str | torch.device) -> None:
        self.d, self.k, self.converged = d, k, converged
        self.basis = torch.zeros(d, 0, dtype=torch.float64, device=device)
        self.products = self.basis
        self.passes = 0

    def start(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        width = min(self.k + EXTRA, self.d)
        return self._append(torch.randn(self.d, width, generator=generator, dtype=torch.float64))

    def take(self, product: Tensor) -> None:
        """S times the block given last."""
        self.products = torch.cat([self.products, product.to(self.basis)], dim=1)
        self.passes += 1
        self._rayleigh_ritz()
        self.product = product

    @property
    def done(self) -> bool:
        allowed = torch.maximum(TOLERANCE * self.values, ROUNDING * self.values[:1])
        enough = bool((self.residuals <= allowed)[: self.converged].all())
        return enough or self.passes == MAX_PASSES or self.basis.shape[1] == self.d

    def following(self) -> Tensor:
        return self._append(self.product[:, : self.d - self.basis.shape[1]])

    def finish(self) -> Axes:
        found = finished_axes(self.vectors, self.values, self.k, negligible=NEGLIGIBLE)
        return found._replace(missing=self.residuals.max().item())

    def _append(self, block: Tensor) -> Tensor:
        block = block.to(self.basis)
        known = self.basis.T @ block
        for _ in range(3):  # once is not orthogonal where little of the block is new
            block = torch.linalg.qr(block - self.basis @ known).Q
            known = self.basis.T @ block
            if not (known.abs() > ORTHOGONAL).any():
                break
        self.basis = torch.cat([self.basis, block], dim=1)
        return block.float()

    def _rayleigh_ritz(self) -> None:
        inner = self.basis.T @ self.products
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        vectors = vectors.flip(1)[:, : self.k]
        self.values = values.flip(0)[: self.k].clamp(min=0)
        self.vectors = self.basis @ vectors
        self.residuals = (self.products @ vectors - self.vectors * self.values).norm(dim=0)
