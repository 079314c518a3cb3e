"""Matrices that couple noises: their formulas, the correlations they give, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onbrand.inference.coupling_matrix import (
    antithetic_matrix,
    apply,
    correlation_root,
    equicorrelated_matrix,
    identical_matrix,
    interpolate,
    repulsive_matrix,
    unit_rows,
)


def equicorrelation(n, rho):
    return [[1.0 if i == j else rho for j in range(n)] for i in range(n)]


def assert_correlations(matrix, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, expected, rtol=0, atol=1e-12)


def random_correlation(n, rank, seed):
    rows = torch.randn(n, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows /= rows.norm(dim=1, keepdim=True)
    return rows @ rows.T


@pytest.mark.parametrize("n", [2, 3, 4, 9])
def test_repulsive_is_a_scaled_centring(n):
    z = torch.randn(n, 5, dtype=torch.float64)
    expected = math.sqrt(n / (n - 1)) * (z - z.mean(0))
    torch.testing.assert_close(repulsive_matrix(n) @ z, expected, rtol=0, atol=1e-12)
    assert_correlations(repulsive_matrix(n), equicorrelation(n, -1 / (n - 1)))


def test_identical_and_antithetic():
    assert_correlations(identical_matrix(3), [[1, 1, 1]] * 3)
    pairs = [[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]]
    assert_correlations(antithetic_matrix(4), pairs)


@pytest.mark.parametrize("make", [identical_matrix, antithetic_matrix, repulsive_matrix])
def test_one_picture_is_left_alone(make):
    assert make(1).tolist() == [[1.0]]
    assert equicorrelated_matrix(1, -0.9).tolist() == [[1.0]]


@given(n=st.integers(2, 12), share=st.floats(0, 1))
def test_equicorrelated_over_its_whole_range(n, share):
    lowest = -1 / (n - 1)
    rho = min(1.0, lowest + share * (1 - lowest))
    assert_correlations(equicorrelated_matrix(n, rho), equicorrelation(n, rho))


def test_the_ends_and_the_middle_of_the_range():
    assert torch.equal(equicorrelated_matrix(4, -1 / 3), repulsive_matrix(4))
    torch.testing.assert_close(equicorrelated_matrix(4, 0.0), torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(equicorrelated_matrix(4, 1.0), torch.full((4, 4), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("rho", [-0.34, 1.01, math.nan])
def test_a_correlation_out_of_range_is_refused(rho):
    with pytest.raises(ValueError, match=rf"rho must be between -0.333333 and 1 for 4 pictures, got {rho:g}"):
        equicorrelated_matrix(4, rho)


@given(n=st.integers(1, 8), rank=st.integers(1, 8), seed=st.integers(0, 1000))
def test_the_root_gives_the_correlations_back(n, rank, seed):
    Gamma = random_correlation(n, rank, seed)
    root = correlation_root(Gamma)
    torch.testing.assert_close(root @ root.T, Gamma, rtol=0, atol=1e-6)
    torch.testing.assert_close(root, root.T, rtol=0, atol=1e-6)
    unit_rows(root)


def test_the_root_of_repulsive_correlations_is_the_repulsive_matrix():
    root = correlation_root(torch.tensor(equicorrelation(5, -0.25)))
    torch.testing.assert_close(root, repulsive_matrix(5), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("Gamma", "reason"),
    [
        ([[1.0, 0.2]], r"must be square, got shape \(1, 2\)"),
        ([[1.0, math.nan], [math.nan, 1.0]], "must be finite"),
        ([[1.0, 0.2], [0.3, 1.0]], "must be symmetric, got entries 0.1 apart"),
        ([[1.0, 0.2], [0.2, 0.9]], "must have ones on its diagonal, got 0.9 in row 1"),
        (equicorrelation(3, -0.75), "must be positive semidefinite, got the eigenvalue -0.5"),
    ],
)
def test_what_is_no_correlation_matrix_is_refused(Gamma, reason):
    with pytest.raises(ValueError, match=f"correlation matrix {reason}"):
        correlation_root(torch.tensor(Gamma))


def test_between_independent_and_a_correlation():
    Gamma = torch.tensor(equicorrelation(3, -0.5), dtype=torch.float64)
    assert torch.equal(interpolate(Gamma, 0), torch.eye(3, dtype=torch.float64))
    assert torch.equal(interpolate(Gamma, 1), Gamma)
    torch.testing.assert_close(interpolate(Gamma, 0.4).tolist(), equicorrelation(3, -0.2))
    for s in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"s must be between 0 and 1, got {s:g}"):
            interpolate(Gamma, s)


def test_rows_are_checked_or_normalised():
    assert unit_rows(torch.tensor([[0.6, 0.8], [1.0, 0.0]])).dtype == torch.float64
    with pytest.raises(ValueError, match="rows of the matrix must have unit norm, got 5 in row 1"):
        unit_rows(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    normalised = unit_rows(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), normalise=True)
    torch.testing.assert_close(normalised.tolist(), [[1.0, 0.0], [0.6, 0.8]])


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_rows_without_a_direction_are_refused(bad):
    matrix = torch.tensor([[1.0, 0.0], [bad, 0.0]])
    with pytest.raises(ValueError, match=f"rows of the matrix must have unit norm, got {bad:g} in row 1"):
        unit_rows(matrix)
    with pytest.raises(ValueError, match=f"must have a norm above zero, got {bad:g} in row 1"):
        unit_rows(matrix, normalise=True)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0), (1, 2, 2)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match=r"matrix must be \(N, M\), got shape \("):
        unit_rows(torch.ones(shape))


def test_apply_mixes_noises_of_any_shape(generator):
    A = torch.randn(2, 3, generator=generator, requires_grad=True)
    z = torch.randn(3, 4, 5, 6, generator=generator)
    mixed = apply(A, z)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, torch.einsum("nm,mchw->nchw", A, z))
    mixed[0].sum().backward()
    torch.testing.assert_close(A.grad, torch.stack([z.sum((1, 2, 3)), torch.zeros(3)]))
    with pytest.raises(ValueError, match="z must hold 3 noises, one a column of the matrix, got 2"):
        apply(A, z[:2])


@pytest.mark.parametrize("make", [identical_matrix, antithetic_matrix, repulsive_matrix])
def test_counts_that_are_none_are_refused(make):
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        make(0)


def test_an_odd_antithetic_gallery_is_refused():
    with pytest.raises(ValueError, match="num_images must be even for antithetic noise, got 3"):
        antithetic_matrix(3)
