"""What couplings do to galleries of known maps: closed forms against draws.

Entries of the drawn latents are repetitions: (dimension, 1, repetitions) is that many independent galleries.
"""

import math
from itertools import combinations

import pytest
import torch
from onbrand.inference.coupling_matrix import interpolate
from onbrand.inference.couplings import (
    Antithetic,
    Equicorrelated,
    FromCorrelation,
    Identical,
    Independent,
    Repulsive,
)

DIMENSION, REPETITIONS, IMAGES = 3, 100_000, 4
PAIRS = list(combinations(range(IMAGES), 2))
LINEAR = torch.tensor([[0.8, -0.3, 0.1], [0.2, 0.9, -0.5]], dtype=torch.float64)


def galleries(coupling, seed=0):
    """(N, dimension, repetitions) float64."""
    shape = (DIMENSION, 1, REPETITIONS)
    return coupling.draw(IMAGES, shape, torch.Generator().manual_seed(seed))[:, :, 0].double()


def mean_and_error(values):
    return float(values.mean()), float(values.std()) / REPETITIONS**0.5


def pair_means(eps, measure):
    """The mean over pairs of measure(difference of their features), per repetition."""
    features = torch.einsum("kd,ndr->nkr", LINEAR, eps)
    return torch.stack([measure(features[i] - features[j]) for i, j in PAIRS]).mean(0)


def squared(difference):
    return difference.square().sum(0)


def rbf(difference):
    return torch.exp(-squared(difference) / 2)


REPULSIVE_COVARIANCE = 2 * IMAGES / (IMAGES - 1) * LINEAR @ LINEAR.T
LEAST_SIMILARITY = float(torch.det(torch.eye(2, dtype=torch.float64) + REPULSIVE_COVARIANCE) ** -0.5)
MOST_SEPARATION = float(REPULSIVE_COVARIANCE.trace())


def test_repulsive_noise_reaches_both_bounds():
    eps = galleries(Repulsive())
    for measure, bound in ((rbf, LEAST_SIMILARITY), (squared, MOST_SEPARATION)):
        mean, error = mean_and_error(pair_means(eps, measure))
        assert error < 0.005 * bound
        assert abs(mean - bound) < 4 * error


@pytest.mark.parametrize(
    "coupling", [Independent(), Identical(), Antithetic(), Equicorrelated(-0.2), Equicorrelated(0.5)]
)
def test_no_other_coupling_is_less_similar(coupling):
    mean, error = mean_and_error(pair_means(galleries(coupling), rbf))
    assert mean > LEAST_SIMILARITY + 6 * error + 0.005


def test_separation_is_most_where_the_sum_is_zero():
    """Antithetic pairs sum to zero as well: as far apart by the mean square, not by similarity."""
    mean, error = mean_and_error(pair_means(galleries(Antithetic()), squared))
    assert abs(mean - MOST_SEPARATION) < 4 * error
    mean, error = mean_and_error(pair_means(galleries(Equicorrelated(-0.2)), squared))
    assert abs(mean - MOST_SEPARATION * 1.2 / (1 + 1 / 3)) < 4 * error


WAVES = torch.tensor([[0.9, 0.4, 0.0], [0.0, -0.7, 0.6], [0.5, 0.5, 0.5]], dtype=torch.float64)
POWERS = WAVES.square().sum(1)
LOOSE = torch.tensor([[1.0, -0.6, 0.3, 0], [-0.6, 1, 0, -0.2], [0.3, 0, 1, -0.7], [0, -0.2, -0.7, 1]])
MEAN_CORRELATION = sum(float(LOOSE[i, j]) for i, j in PAIRS) / len(PAIRS)


def separation(eps, wave):
    """Mean squared distance between pictures wave(w_k eps_i), per repetition."""
    pictures = wave(torch.einsum("kd,ndr->nkr", WAVES, eps))
    return torch.stack([(pictures[i] - pictures[j]).square().sum(0) for i, j in PAIRS]).mean(0)


def gain(s, wave):
    """How much further apart pictures are at (1 - s) I + s Gamma than from the same noises uncoupled."""
    coupled = separation(galleries(FromCorrelation(interpolate(LOOSE, s))), wave)
    return mean_and_error(coupled - separation(galleries(Independent()), wave))


def test_the_gain_of_a_coupling_is_linear_in_its_strength_at_first():
    """d/ds at 0 is -2 sum over pairs of Gamma_ij |E DG|^2, for sine waves |w|^2 exp(-|w|^2) each."""
    rate = -2 * MEAN_CORRELATION * float((POWERS * torch.exp(-POWERS)).sum())
    assert rate > 0.3
    for s in (0.05, 0.1, 0.2):
        mean, error = gain(s, torch.sin)
        assert error < 0.1 * rate * s
        assert abs(mean - rate * s) < 4 * error + rate * s**3


def test_without_a_linear_part_nothing_is_gained_at_first():
    """Cosines are even, so E DG = 0: what is left is of second order, and exactly a hyperbolic cosine."""
    for s in (0.1, 0.5):
        mean, error = gain(s, torch.cos)
        second = [
            -2 * math.exp(-w) * (math.cosh(s * float(LOOSE[i, j]) * w) - 1)
            for i, j in PAIRS
            for w in POWERS.tolist()
        ]
        assert abs(mean - sum(second) / len(PAIRS)) < 4 * error
        assert error < 0.003
