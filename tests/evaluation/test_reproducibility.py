"""Reproducibility and memorisation scores on features whose cosines are known by construction."""

import math

import numpy as np
import pytest
import torch
from onbrand.evaluation import (
    calibrate_threshold,
    cosines,
    gl_score,
    nearest,
    rp_between,
    rp_conditional,
    rp_score,
)
from onbrand.evaluation import reproducibility as module
from scipy.spatial.distance import cdist
from scipy.stats import binomtest

WIDTH = 6


def random_rows(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, WIDTH))


def at_cosine(rows, values, seed=9):
    """Rows of any length at these cosines with the given ones."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    other = random_rows(len(rows), seed)
    other -= (other * unit).sum(axis=1, keepdims=True) * unit
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    values = np.asarray(values)[:, None]
    return 3.7 * (values * unit + np.sqrt(1 - values**2) * other)


def test_pairs_above_the_threshold_are_counted():
    rows = random_rows(5)
    others = at_cosine(rows, [0.9, 0.61, 0.59, -0.9, 0.0])
    np.testing.assert_allclose(cosines(rows, others), [0.9, 0.61, 0.59, -0.9, 0.0], atol=1e-12)
    found = rp_score(rows, torch.tensor(others))
    assert (found.value, found.n, found.threshold) == (0.4, 5, 0.6)
    assert found.standard_error == pytest.approx(math.sqrt(0.4 * 0.6 / 4))
    assert rp_score(rows, others, threshold=0.5).value == 0.6
    assert str(found) == "0.400 ± 0.245 (n = 5, cosine above 0.6)"


def test_a_cosine_at_the_threshold_does_not_count():
    east, north = np.eye(2)
    assert rp_score([east, north], [east, east], threshold=0.0).value == 0.5
    assert gl_score(np.stack([east, north]), east[None], threshold=0.0).value == 0.5


def test_a_model_reproduces_itself_and_the_interval_says_how_surely():
    found = rp_score(random_rows(50), random_rows(50))
    assert (found.value, found.standard_error) == (1.0, 0.0)
    expected = binomtest(50, 50).proportion_ci(method="wilson")
    assert found.interval == pytest.approx((expected.low, expected.high))
    some = rp_score(random_rows(50), at_cosine(random_rows(50), [0.9] * 13 + [0.1] * 37))
    expected = binomtest(13, 50).proportion_ci(method="wilson")
    assert some.interval == pytest.approx((expected.low, expected.high))


def test_each_class_against_its_own():
    rows = np.stack([random_rows(4), -random_rows(4)])
    same = [[0.9, 0.9, 0.0, 0.0], [0.9, 0.0, 0.9, 0.0]]
    others = np.stack([at_cosine(own, values) for own, values in zip(rows, same, strict=True)])
    found = rp_conditional(rows, others)
    assert (found.value, found.n) == (0.5, 4)
    by_noise = np.array([1.0, 0.5, 0.5, 0.0])
    assert found.standard_error == pytest.approx(by_noise.std(ddof=1) / 2)
    assert rp_conditional(rows[:1], others[:1]) == rp_score(rows[0], others[0])
    assert rp_conditional(rows, others[::-1]).value == 0


def test_classes_of_one_noise_do_not_make_it_surer():
    """Twenty classes that all say the same are no more samples than one."""
    rows, others = random_rows(10), at_cosine(random_rows(10), [0.9] * 5 + [0.1] * 5)
    many = rp_conditional(np.stack([rows] * 20), np.stack([others] * 20))
    assert many == rp_score(rows, others)


def test_the_nearest_class_decides():
    rows = random_rows(3)
    by_class = np.stack([at_cosine(rows, [0.9, 0.1, 0.1]), at_cosine(rows, [0.1, 0.7, 0.5], seed=8)])
    found = rp_between(rows, by_class)
    assert (found.value, found.n) == (pytest.approx(2 / 3), 3)
    assert rp_between(rows, by_class[:1]).value == pytest.approx(1 / 3)


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_nearest_is_the_sorted_list_of_all_cosines(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    rows, training = random_rows(7), random_rows(10, seed=1)
    similar = 1 - cdist(rows, training, "cosine")
    order = np.argsort(-similar, axis=1)
    for k in (1, 4, 10):
        places, found = nearest(rows, torch.tensor(training), k)
        assert np.array_equal(places, order[:, :k])
        np.testing.assert_allclose(found, np.take_along_axis(similar, order[:, :k], axis=1), atol=1e-12)
    streamed = nearest(rows, iter([training[:4], training[:0], torch.tensor(training[4:])]), 4)
    assert np.array_equal(streamed[0], order[:, :4])
    expected = float(np.mean(similar.max(axis=1) <= 0.6))
    assert 0 < expected < 1
    assert gl_score(rows, training).value == expected


@pytest.mark.parametrize("block", [2, 4096])
def test_of_equal_training_pictures_the_first_is_named(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    rows = random_rows(2)
    places, found = nearest(rows[:1], rows[[1, 0, 0, 1, 0]], 3)
    assert places.tolist() == [[1, 2, 4]]
    np.testing.assert_allclose(found, 1)


def test_copies_of_training_pictures_are_not_new():
    training = np.eye(WIDTH)
    assert gl_score(training[:4], training).value == 0
    new = np.concatenate([training[:2], at_cosine(training[2:4], [0.9, 0.9]), -np.ones((2, WIDTH))])
    found = gl_score(new, training)
    assert (found.value, found.n) == (pytest.approx(2 / 6), 6)


def test_a_threshold_of_a_false_positive_rate():
    different = np.random.default_rng(0).permutation(np.linspace(0, 0.99, 100))
    found = calibrate_threshold([0.3, 0.96, 1.0], different, false_positive_rate=0.05)
    assert found.threshold == pytest.approx(0.94)
    assert found.false_positive_rate == 0.05
    assert found.true_positive_rate == pytest.approx(2 / 3)
    assert str(found) == (
        "a cosine above 0.940 counts as the same picture: so do 5.00% of 100 different pairs and "
        "66.67% of 3 same pairs"
    )
    assert calibrate_threshold([1.0], different, false_positive_rate=0.29).false_positive_rate == 0.29


def test_equal_cosines_never_exceed_the_rate():
    found = calibrate_threshold([0.9], [0.5] * 60 + [0.1] * 40, false_positive_rate=0.5)
    assert (found.threshold, found.false_positive_rate) == (0.5, 0.0)


ROWS = random_rows(3)
WRONG = {
    "rows of features_a": (
        lambda: rp_score(ROWS[:, 0], ROWS),
        r"features_a must be of shape \(N, D\), got \(3,\)",
    ),
    "pictures for features": (
        lambda: rp_score(ROWS, torch.rand(3, 3, 8, 8)),
        r"features_b must be of shape \(N, D\), got \(3, 3, 8, 8\)",
    ),
    "other noises": (
        lambda: rp_score(ROWS, ROWS[:2]),
        r"features_b must be of shape \(3, 6\) as the others, got \(2, 6\)",
    ),
    "one noise": (lambda: rp_score(ROWS[:1], ROWS[:1]), "features must be at least 2 rows, got 1"),
    "zeros": (
        lambda: rp_score(ROWS, 0 * ROWS),
        "features_b must be finite and not all zero, got row 0 of length 0",
    ),
    "no classes": (
        lambda: rp_conditional(ROWS, ROWS),
        r"features_a must be of shape \(n_classes, n, D\), got \(3, 6\)",
    ),
    "other classes": (
        lambda: rp_conditional(ROWS[None], np.stack([ROWS, ROWS])),
        "features_b must be of 1 classes as features_a, got 2 classes",
    ),
    "classes of other noises": (
        lambda: rp_between(ROWS, ROWS[None, :2]),
        r"class_features must be of shape \(3, 6\) as the others, got \(2, 6\)",
    ),
    "class features without classes": (
        lambda: rp_between(ROWS, ROWS),
        r"class_features must be of shape \(n_classes, n, D\), got \(3, 6\)",
    ),
    "empty training set": (
        lambda: gl_score(ROWS, ROWS[:0]),
        "training_features must be at least 1 row, got 0",
    ),
    "no training blocks": (lambda: gl_score(ROWS, []), "training_features must be at least 1 row, got 0"),
    "other descriptor": (
        lambda: gl_score(ROWS, np.ones((4, 5))),
        "training_features must be of width 6 as features, got 5",
    ),
    "training features of pictures": (
        lambda: gl_score(ROWS, np.ones((4, 5, 5))),
        r"training_features must be of shape \(N, D\), got \(4, 5, 5\)",
    ),
    "no neighbour": (lambda: nearest(ROWS, ROWS, 0), "k must be at least 1, got 0"),
    "too many neighbours": (
        lambda: nearest(ROWS, ROWS, 4),
        "k must be at most the 3 training pictures, got 4",
    ),
    "threshold": (
        lambda: gl_score(ROWS, ROWS, threshold=60),
        r"threshold must be a cosine in \[-1, 1\], got 60",
    ),
    "rate": (
        lambda: calibrate_threshold([1.0], [0.0], false_positive_rate=1.0),
        "false_positive_rate must be between 0 and 1, got 1.0",
    ),
    "too few pairs": (
        lambda: calibrate_threshold([1.0], [0.0] * 99),
        "different_pairs must be at least 100 for a false_positive_rate of 0.01, got 99",
    ),
    "no pairs": (
        lambda: calibrate_threshold([], [0.0] * 100),
        r"same_pairs must be a list of cosines, at least one, got shape \(0,\)",
    ),
    "no cosines": (
        lambda: calibrate_threshold([1.0], [0.0, 7.0]),
        r"different_pairs must be in \[-1, 1\], got 0 to 7",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()
