"""The best linear test of training starts against pure noise: how strongly the noise leaks the picture."""

from typing import NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.special import ndtr

from .statistics import Statistics


class ClassModel(NamedTuple):
    """x_0 ~ N(mean, Sigma): variance v_k along axis k and rho in every other direction (probabilistic PCA).

    A direction is a combination of the axes and the rest of the mean, which is perpendicular to them.
    """

    mean: Tensor  # (r,) of the class mean along the axes, float64
    mean_rest: float  # squared norm of the rest of the mean
    variances: Tensor  # (r,)
    rest: float  # rho

    @classmethod
    def of(cls, statistics: Statistics, c: int) -> "ClassModel":
        """The model of class c."""
        rank, d = statistics.axes.shape[1:]
        whole, variances = statistics.means[c], statistics.variances[c]
        mean = statistics.axes[c].double() @ whole
        left = float(statistics.total_variances[c] - variances.sum())
        mean_rest = max(float(whole @ whole - mean @ mean), 0.0)
        return cls(mean, mean_rest, variances, max(left, 0.0) / (d - rank) if d > rank else 0.0)


class LinearTest(NamedTuple):
    """Says "training start" where direction . x exceeds the threshold."""

    a: float
    on_axes: Tensor  # (r,) the direction along the axes
    on_rest: float  # times the rest of the mean
    length: float  # of the direction; 0 where nothing tells the two apart
    threshold: float

    @property
    def accuracy(self) -> float:
        """The share the test gets right under the model, of starts and noises alike."""
        ratio = self.threshold / self.length if self.length else 0.0
        return float(ndtr(torch.tensor(ratio, dtype=torch.float64)))


def best_linear_test(model: ClassModel, a: float) -> LinearTest:
    """The linear test with the least equal errors between N(sqrt(a) mean, a Sigma + (1-a) I) and N(0, I).

    With C = a Sigma + (1-a) I its direction w makes sqrt(a) w.mean / (sqrt(w^T C w) + |w|) largest, which
    is so for w = (s C + (1-s) I)^-1 mean at the one s in [0, 1] with s = |w| / (sqrt(w^T C w) + |w|).
    Source: Anderson and Bahadur, Classification into two multivariate normal distributions (1962).
    """
    on_axes, on_rest = a * model.variances + 1 - a, a * model.rest + 1 - a

    def direction(s: float) -> tuple[Tensor, float]:
        return model.mean / (s * on_axes + 1 - s), 1 / (s * on_rest + 1 - s)

    def deviations(s: float) -> tuple[float, float]:
        w, w_rest = direction(s)
        rest = w_rest**2 * model.mean_rest
        start, noise = (on_axes * w * w).sum() + on_rest * rest, (w * w).sum() + rest
        return float(start) ** 0.5, float(noise) ** 0.5

    def excess(s: float) -> float:
        start, noise = deviations(s)
        return s - noise / (start + noise)

    if not deviations(0.0)[1]:
        return LinearTest(a, torch.zeros_like(model.mean), 0.0, 0.0, 0.0)
    s = brentq(excess, 0.0, 1.0, xtol=1e-14)
    (w, w_rest), (start, noise) = direction(s), deviations(s)
    gap = a**0.5 * float(w @ model.mean + w_rest * model.mean_rest)
    return LinearTest(a, w, w_rest, noise, gap / (start + noise) * noise)


def accuracy_on(model: ClassModel, test: LinearTest, scores: Tensor, on_mean: Tensor) -> float:
    """The share the test gets right, of noises and of the training starts of pictures, at least 0.5.

    scores (n, r) and on_mean (n,) as in `PictureNumbers`; the noise of the starts is integrated out. Without
    pictures it is the model's own share. That one is optimistic where few pictures made the class mean,
    as they would be on themselves: judge by pictures that the statistics have not seen.
    """
    if not len(scores) or not test.length:
        return test.accuracy
    along = scores + model.mean
    pictures = along @ test.on_axes + test.on_rest * (on_mean - along @ model.mean)
    noise_deviation = (1 - test.a) ** 0.5 * test.length
    starts = ndtr((test.a**0.5 * pictures - test.threshold) / noise_deviation).mean()
    return max(float(starts + test.accuracy) / 2, 0.5)
