"""Contrastive Noise Optimisation: a gallery's noises pushed apart by what the network would make of them."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .noise import Initializer

Predict = Callable[[Tensor], tuple[Tensor, Any]]


@dataclass(frozen=True)
class ContrastiveNoise:
    """An initializer whose noise, drawn by `inner`, takes a few steps of InfoNCE on first predictions.

    Each picture's prediction is to stay like its own before the first step (the positive) and unlike the
    others' now (the negatives). steps: of Adam, one forward pass of the network each; width: predictions are
    averaged to width x width; temperature: of the negatives; gamma: the positive's over it,
    1 / (temperature ln(N - 1) + 1) if None. Stable Diffusion 3 is run with learning_rate .001 and width 32.
    One picture is left as drawn. Source: METHODS 3, "Contrastive Noise Optimisation" (arXiv 2510.03813).
    """

    inner: Initializer
    steps: int = 3
    learning_rate: float = 0.01
    width: int = 16
    temperature: float = 0.1
    gamma: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "width", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.gamma is not None and not self.gamma > 0:
            raise ValueError(f"gamma must be positive or None, got {self.gamma}")

    def draw(self, num_images: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """The inner initializer's noise (num_images, *shape)."""
        return self.inner.draw(num_images, shape, generator)

    def refine(self, eps: Tensor, predict: Predict) -> Tensor:
        """eps (N, C, H, W) after `steps` steps, as float32; predict: as the pipeline hands it over."""
        if hasattr(self.inner, "refine"):
            eps = self.inner.refine(eps, predict)
        if len(eps) < 2:
            return eps
        gain = predict.gain  # type: ignore[attr-defined]
        if not gain:
            what = "the network's own output alone, through which no gradient flows"
            warnings.warn(
                f"contrastive noise changes nothing here: the first prediction is {what}", stacklevel=2
            )
            return eps
        reference: Tensor | None = None
        with torch.enable_grad():
            moved = eps.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([moved], lr=self.learning_rate)
            for _ in range(self.steps):
                # through the network no gradient flows: only the formula around it moves with the noise
                x_0 = predict(moved.detach())[0] + gain * (moved - moved.detach())
                features = self._features(x_0)
                if reference is None:
                    reference = features.detach()
                optimizer.zero_grad()
                contrastive_loss(
                    features, reference, temperature=self.temperature, gamma=self.gamma
                ).backward()
                optimizer.step()
        return moved.detach()

    def _features(self, x_0: Tensor) -> Tensor:
        size = (min(self.width, x_0.shape[-2]), min(self.width, x_0.shape[-1]))
        return functional.adaptive_avg_pool2d(x_0, size).flatten(1)


def contrastive_loss(
    features: Tensor, reference: Tensor, *, temperature: float = 0.1, gamma: float | None = None
) -> Tensor:
    """InfoNCE over N pictures, by cosine similarity: the mean of -log of the positive's share.

    features, reference: (N, D), N at least 2. Of picture i the positive is reference i, at temperature
    gamma * temperature, the negatives are features j; the denominator holds all of them.
    """
    if gamma is None:
        gamma = 1 / (temperature * math.log(len(features) - 1) + 1)
    unit, unit_reference = functional.normalize(features), functional.normalize(reference)
    positive = (unit * unit_reference).sum(1, keepdim=True) / (gamma * temperature)
    others = ~torch.eye(len(features), dtype=torch.bool)
    negatives = (unit @ unit.T / temperature)[others].reshape(len(features), -1)
    return (torch.logsumexp(torch.cat([positive, negatives], 1), 1) - positive[:, 0]).mean()
