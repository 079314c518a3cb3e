"""The expected scores of a text: a ridge regression from pooled text embeddings to principal components."""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from .passes import Processes, Together

FOLDS = 5
STRENGTHS = 10.0 ** np.arange(-5, 3)  # of the penalty, times an entry's mean sum of squares
HELD_BYTES = 2**29


class TextMap(NamedTuple):
    """xi ~ N(text_weight @ text_embeds + text_bias, residual_variances) for each class; float32."""

    text_weight: Tensor  # (n_classes, K, E)
    text_bias: Tensor  # (n_classes, K)
    residual_variances: Tensor  # (n_classes, K)


def fit_text_map(
    latents: Tensor | Iterable[tuple[Tensor, Tensor]],
    class_ids: Tensor | None,
    text_embeds: Any,
    *,
    tensors: dict[str, Tensor],
    processes: Processes | None = None,
) -> TextMap:
    """A ridge regression a class, its penalty chosen on texts left out, `FOLDS` times.

    latents, class_ids, text_embeds, processes: as `fit_family` takes them; tensors: `mean`, `components` and
    `variances`. Pictures are read once (again for every so many classes as fill HELD_BYTES with moments);
    what is held does not grow with their number. The residual variances are those on the texts left out, so
    a text that tells nothing leaves the class's own variances.
    Raises ValueError unless there is one finite embedding a picture.
    """
    n_classes, k = tensors["variances"].shape
    width = int(text_embeds.shape[1])
    at_once = max(1, HELD_BYTES // (8 * FOLDS * (1 + width + k) ** 2))
    maps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for first in range(0, n_classes, at_once):
        group = range(first, min(first + at_once, n_classes))
        moments = _shared_moments(
            partial(_moments, latents, class_ids, text_embeds, group, tensors=tensors), Together(processes)
        )
        maps += [
            _ridge(moments[i].numpy(), tensors["variances"][c].double().numpy(), width=width)
            for i, c in enumerate(group)
        ]
    weight, bias, residual = (torch.from_numpy(np.stack(part)).float() for part in zip(*maps, strict=True))
    return TextMap(weight, bias, residual)


def _shared_moments(compute: Callable[[], Tensor], together: Together) -> Tensor:
    """The sum of all processes' moments. An error in one ends them all, so that none waits for ever."""
    own, problem = torch.zeros(0), None
    try:
        own = compute()
    except ValueError as error:
        problem = error
    failed = int(together.sum(torch.tensor(problem is not None).long()))
    if problem is not None:
        raise problem
    if failed:
        raise ValueError(f"text_embeds must be right in all processes, got errors in {failed} others")
    return together.sum(own)


def _moments(
    latents: Tensor | Iterable[tuple[Tensor, Tensor]],
    class_ids: Tensor | None,
    text_embeds: Any,
    group: range,
    *,
    tensors: dict[str, Tensor],
) -> Tensor:
    """Sums of products of (1, embedding, scores) by class and fold, (classes, FOLDS, n, n), n = 1+E+K."""
    size = 1 + int(text_embeds.shape[1]) + tensors["variances"].shape[1]
    sums = torch.zeros(len(group), FOLDS, size, size, dtype=torch.float64)
    batches: Any = [(latents, class_ids)] if isinstance(latents, Tensor) else latents
    row = 0
    for x, ids in batches:
        text = torch.as_tensor(text_embeds[row : row + len(x)]).detach().cpu().double()
        row += len(x)
        if len(text) != len(x) or not text.isfinite().all():
            what = f"{len(text)} for {len(x)}" if len(text) != len(x) else "nan or inf"
            raise ValueError(f"text_embeds must be one finite embedding a picture, got {what}")
        folds = torch.tensor([_fold(one) for one in text])
        for c in set(ids.tolist()) & set(group):
            own = ids == c
            centred = (x[own].cpu().float() - tensors["mean"][c]).flatten(1)
            scores = (centred @ tensors["components"][c].flatten(1).T).double()
            columns = torch.cat([torch.ones(len(scores), 1).double(), text[own], scores], dim=1)
            for fold in range(FOLDS):
                some = columns[folds[own] == fold]
                sums[c - group.start, fold] += some.T @ some
    if row != len(text_embeds):
        raise ValueError(
            f"text_embeds must be one finite embedding a picture, got {len(text_embeds)} for {row}"
        )
    return sums


def _fold(text: Tensor) -> int:
    # By the text itself: equal texts never stand on both sides, and the order of pictures does not matter.
    return hashlib.sha256(text.float().numpy().tobytes()).digest()[0] % FOLDS


def _ridge(
    moments: np.ndarray, variances: np.ndarray, *, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight (K, E), bias (K,) and residual variances (K,) from the moments (FOLDS, 1+E+K, 1+E+K)."""
    total, k = moments.sum(axis=0), len(variances)
    count = total[0, 0]
    folds = [fold for fold in moments if 0 < fold[0, 0] < count]
    spread = np.trace(_covariance(total)[:width, :width]) / width if count else 0.0
    if len(folds) < 2 or spread <= 1e-9 * np.trace(total[1 : 1 + width, 1 : 1 + width]) / width:
        return np.zeros((k, width)), np.zeros(k), variances  # one text, or none: it tells nothing
    rests = [_Compressed(total - fold, width) for fold in folds]
    errors = {
        penalty: sum(
            _squared_errors(fold, *rest.solve(penalty)) for fold, rest in zip(folds, rests, strict=True)
        )
        for penalty in STRENGTHS * spread
    }
    best = min(errors, key=lambda penalty: np.sum(errors[penalty]))
    residual = np.minimum(errors[best] / max(count - 1, 1), variances)
    return *_Compressed(total, width).solve(best), residual


def _covariance(moments: np.ndarray) -> np.ndarray:
    """Centred sums of products of (embedding, scores)."""
    return moments[1:, 1:] - np.outer(moments[0, 1:], moments[0, 1:]) / moments[0, 0]


class _Compressed:
    """A regression with as few rows as have given moments, at most as many as an embedding has entries."""

    def __init__(self, moments: np.ndarray, width: int) -> None:
        self.width = width
        centred = _covariance(moments)
        values, vectors = np.linalg.eigh(centred[:width, :width])
        # against the embeddings' own size too: one text's covariance is rounding and nothing else
        scale = max(values.max(), 1e-6 * moments[1 : 1 + width, 1 : 1 + width].trace())
        keep = values > 1e-12 * scale
        root = np.sqrt(values[keep])
        self.rows = root[:, None] * vectors.T[keep]
        self.targets = (vectors.T[keep] @ centred[:width, width:]) / root[:, None]
        self.means = moments[0, 1:] / moments[0, 0]

    def solve(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Weight (K, E) and bias (K,) of scikit-learn's ridge regression."""
        if not len(self.rows):  # of texts that are all one
            return np.zeros((self.targets.shape[1], self.width)), self.means[self.width :]
        ridge = Ridge(alpha=penalty, fit_intercept=False, solver="cholesky").fit(self.rows, self.targets)
        weight = np.reshape(ridge.coef_, (self.targets.shape[1], self.width))
        return weight, self.means[self.width :] - weight @ self.means[: self.width]


def _squared_errors(moments: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Sum of squared errors of each score (K,) over the pictures of these moments."""
    # An error is (-bias, -weight, e_k) times (1, embedding, scores).
    rows = np.concatenate([-bias[:, None], -weight, np.eye(len(bias))], axis=1)
    return np.einsum("ki,ij,kj->k", rows, moments, rows)
