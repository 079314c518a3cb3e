import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.evaluation import mean_similarity, pairwise_l2, pairwise_ssim, vendi_score
from PIL import Image
from scipy.linalg import logm
from skimage.metrics import structural_similarity


def noise(n: int, *, side: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(n, 3, side, side))


def test_black_and_white_are_one_apart():
    black, white = Image.new("RGB", (8, 8), "black"), Image.new("RGB", (8, 8), "white")
    assert pairwise_l2([black, white]) == 1
    assert pairwise_l2([black, black, white]) == pytest.approx(2 / 3)
    assert pairwise_l2([Image.new("RGB", (8, 8), (255, 0, 0)), black]) == pytest.approx(1 / 3)


def test_l2_is_the_mean_over_pairs():
    pixels = noise(5)
    pairs = [np.mean((a - b) ** 2) for a, b in combinations(pixels, 2)]
    assert pairwise_l2(pixels) == pytest.approx(np.mean(pairs))
    assert pairwise_l2(torch.tensor(pixels[::-1].copy())) == pytest.approx(np.mean(pairs))


def test_l2_is_on_the_scale_of_papers():
    """Unrelated pictures of a photograph's contrast, 0.25, are twice its square apart: 0.125."""
    pixels = np.random.default_rng(0).normal(0.5, 0.25, (40, 3, 32, 32)).clip(0, 1)
    assert pairwise_l2(pixels) == pytest.approx(2 * pixels.var(), rel=1e-3)
    assert pairwise_l2(pixels) == pytest.approx(0.125, rel=0.1)


def test_equal_pictures_do_not_differ_at_all():
    pixels = noise(1).repeat(3, axis=0)
    features = np.random.default_rng(0).normal(size=(1, 9)).repeat(3, axis=0)
    assert pairwise_l2(pixels) == 0
    assert pairwise_ssim(pixels) == pytest.approx(1)
    assert mean_similarity(features) == pytest.approx(1)
    assert vendi_score(features) == pytest.approx(1)


def test_ssim_is_scikit_images_over_all_pairs():
    pixels = noise(3) * np.linspace(0.3, 1, 3)[:, None, None, None]
    pairs = [
        structural_similarity(
            a.transpose(1, 2, 0),
            b.transpose(1, 2, 0),
            channel_axis=2,
            data_range=1,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
        for a, b in ((pixels[0], pixels[1]), (pixels[0], pixels[2]), (pixels[1], pixels[2]))
    ]
    assert np.ptp(pairs) > 0.01
    assert pairwise_ssim(pixels) == pytest.approx(np.mean(pairs))
    assert pairwise_ssim(pixels[::-1].copy()) == pytest.approx(np.mean(pairs))


def test_similarity_is_the_mean_off_the_diagonal():
    features = np.random.default_rng(1).normal(0.3, 1, (6, 4))
    cosines = np.corrcoef(np.hstack([features, -features]))  # of mean zero, so correlations are cosines
    expected = cosines[~np.eye(6, dtype=bool)].mean()
    assert mean_similarity(features) == pytest.approx(expected)
    assert mean_similarity(torch.tensor(features)) == pytest.approx(expected)
    assert mean_similarity([[1, 0], [-3, 0]]) == pytest.approx(-1)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_vendi_of_orthogonal_pictures_is_their_number(n):
    assert vendi_score(3 * np.eye(n, 7)) == pytest.approx(n)


def test_vendi_counts_groups_of_equal_pictures():
    assert vendi_score(np.eye(2)[[0, 0, 1, 1]]) == pytest.approx(2)
    unequal = vendi_score(np.eye(2)[[0, 0, 0, 1]])
    assert unequal == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))


def test_vendi_of_two_pictures_follows_their_cosine():
    """Eigenvalues (1 + c) / 2 and (1 - c) / 2."""
    for cosine in (-0.9, 0.0, 0.3, 0.8):
        p, q = (1 + cosine) / 2, (1 - cosine) / 2
        score = vendi_score([[1, 0], [cosine, np.sqrt(1 - cosine**2)]])
        assert score == pytest.approx(p**-p * q**-q)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 6), seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
def test_vendi_is_the_von_neumann_entropy_whatever_the_order_and_length(n, seed, scale):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 12)) + 1
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    state = unit @ unit.T / n
    expected = np.exp(-np.trace(state @ logm(state)).real)
    assert vendi_score(features) == pytest.approx(expected, rel=1e-6)
    assert vendi_score(scale * features[rng.permutation(n)]) == pytest.approx(expected, rel=1e-6)
    assert 1 - 1e-9 <= vendi_score(features) <= n + 1e-9


@pytest.mark.parametrize("metric", [pairwise_l2, pairwise_ssim])
def test_a_pair_takes_two_pictures(metric):
    with pytest.raises(ValueError, match=r"^gallery must hold at least 2 pictures, got 1$"):
        metric(noise(1))


def test_ssim_needs_room_for_its_window():
    with pytest.raises(
        ValueError, match=r"^pictures must be at least 11 pixels a side for SSIM, got 10 x 10$"
    ):
        pairwise_ssim(noise(2, side=10))
    assert pairwise_ssim(noise(2, side=11)) < 1


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones(3), r"features must be of shape \(N, D\), got \(3,\)"),
        ([[1, 0], [0, 0]], r"features must be finite and not all zero, got row 1 of length 0\.0"),
        ([[np.nan, 0], [0, 1]], "features must be finite and not all zero, got row 0 of length nan"),
    ],
)
@pytest.mark.parametrize("metric", [mean_similarity, vendi_score])
def test_what_are_no_features_is_refused(metric, features, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        metric(features)


def test_too_few_features_are_refused():
    with pytest.raises(ValueError, match=r"^features must be at least 2 rows, got 1$"):
        mean_similarity(np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"^features must be at least 1 row, got 0$"):
        vendi_score(np.ones((0, 3)))


def test_numbers_without_networks_do_not_import_torch():
    code = "import sys, onbrand.evaluation as e; e.pairwise_l2; assert 'torch' not in sys.modules"
    code += "; e.load_sscd; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_no_attribute():
    import onbrand.evaluation

    with pytest.raises(AttributeError, match=r"^module 'onbrand\.evaluation' has no attribute 'nothing'$"):
        _ = onbrand.evaluation.nothing
