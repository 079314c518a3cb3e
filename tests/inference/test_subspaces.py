"""Projections of latents: each against its matrix, which must be an orthogonal projection's."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onbrand.inference.couplings import Identical, OnSubspace, Repulsive
from onbrand.inference.subspaces import Band, Channels, Directions, Mask

SHAPE = (2, 5, 6)
ENTRIES = 60


def matrix_of(projection, shape=SHAPE):
    """(d, d), column i the projection of the i-th unit vector."""
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    return projection(basis).flatten(1).T


def orthonormal(count, seed=0):
    drawn = torch.randn(ENTRIES, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].T.reshape(count, *SHAPE)


FLAT = torch.zeros(5, 6)
FLAT[1:3, 2:] = 1
DEEP = torch.zeros(SHAPE, dtype=torch.bool)
DEEP[1, :, 0] = True
PROJECTIONS = [
    (Mask(FLAT), 16), (Mask(DEEP), 5), (Channels([1]), 30), (Band(0, 0.1), 2), (Band(0.5, 1.1), None),
    (Band(1.2), None), (Directions(orthonormal(7)), 7), (Directions(orthonormal(7).float()), 7),
]  # fmt: skip


@pytest.mark.parametrize(("projection", "rank"), PROJECTIONS)
def test_each_is_an_orthogonal_projection(projection, rank):
    P = matrix_of(projection)
    torch.testing.assert_close(P @ P, P, rtol=0, atol=1e-10)
    torch.testing.assert_close(P, P.T, rtol=0, atol=1e-10)
    trace = float(P.trace())
    assert trace == pytest.approx(round(trace), abs=1e-9)
    assert 0 < round(trace) < ENTRIES
    assert rank is None or round(trace) == rank


@given(
    low=st.floats(0, 1.3), width=st.floats(0.3, 1), height=st.integers(2, 7), across=st.integers(2, 7)
)  # fmt: skip
def test_bands_of_any_size_are_orthogonal_projections(low, width, height, across):
    try:
        P = matrix_of(Band(low, low + width), (1, height, across))
    except ValueError as error:
        assert "must keep some but not all" in str(error)  # noqa: PT017
        return
    torch.testing.assert_close(P @ P, P, rtol=0, atol=1e-10)
    torch.testing.assert_close(P, P.T, rtol=0, atol=1e-10)


def test_a_band_keeps_the_waves_in_it():
    row = torch.arange(8, dtype=torch.float64)
    slow, edge, fast = (torch.cos(2 * math.pi * k * row / 8).expand(1, 1, 8, 8) for k in (1, 2, 4))
    kept = Band(0, 0.5)(slow + fast)  # of 8 pixels, wave k has the frequency k / 4
    torch.testing.assert_close(kept, slow)
    torch.testing.assert_close(Band(0, 0.5)(slow + edge), slow)
    torch.testing.assert_close(Band(0.5)(slow + edge + fast), edge + fast)
    assert Band(0.25, 0.5)(slow).norm() == pytest.approx(float(slow.norm()))
    constant = torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(Band(0, 0.01)(constant), constant)


def test_directions_keep_their_span():
    directions = orthonormal(3)
    x = torch.einsum("bk,kchw->bchw", torch.tensor([[1.0, -2, 3]], dtype=torch.float64), directions)
    torch.testing.assert_close(Directions(directions)(x), x)
    other = orthonormal(4)[3:]
    other = other - Directions(directions)(other)
    assert Directions(directions)(other).abs().max() < 1e-12


@pytest.mark.parametrize(("projection", "rank"), PROJECTIONS)
def test_what_a_projection_keeps_is_coupled_one_way_and_the_rest_another(projection, rank):
    eps = OnSubspace(projection, Identical(), Repulsive()).draw(2, SHAPE, torch.Generator().manual_seed(0))
    kept = projection(eps)
    torch.testing.assert_close(kept[0], kept[1], rtol=0, atol=1e-5)
    rest = eps - kept
    torch.testing.assert_close(rest[0], -rest[1], rtol=0, atol=1e-5)
    assert kept.abs().max() > 0.1
    assert rest.abs().max() > 0.1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Mask(torch.ones(5)), r"mask must be \(H, W\) or \(C, H, W\), got shape \(5,\)"),
        (lambda: Mask(0.5 * FLAT), "mask must hold zeros and ones, got 0.5"),
        (lambda: Mask(torch.zeros(5, 6)), "mask must keep some but not all, got nothing"),
        (lambda: Mask(torch.ones(5, 6)), "mask must keep some but not all, got all"),
        (lambda: Channels([]), r"channels must be different numbers from 0, got \[\]"),
        (lambda: Channels([1, 1]), r"channels must be different numbers from 0, got \[1, 1\]"),
        (lambda: Channels([-1]), r"channels must be different numbers from 0, got \[-1\]"),
        (lambda: Band(0.5, 0.5), "band must have 0 <= low < high, got 0.5 to 0.5"),
        (lambda: Band(-0.1, 0.5), "band must have 0 <= low < high, got -0.1 to 0.5"),
        (lambda: Directions(torch.ones(SHAPE)), r"directions must be \(K, C, H, W\) .*, got shape \(2, 5, 6"),
        (lambda: Directions(orthonormal(60)), r"K from 1 to less than C H W, got shape \(60, 2, 5, 6\)"),
        (lambda: Directions(2 * orthonormal(2)), "directions must be orthonormal, got products 3 off"),
    ],
)
def test_what_is_no_subspace_is_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


@pytest.mark.parametrize(
    ("projection", "reason"),
    [
        (Mask(FLAT), r"mask must be of the latents' size \(4, 4\), got \(5, 6\)"),
        (Mask(DEEP), r"mask must be of the latents' size \(2, 4, 4\), got \(2, 5, 6\)"),
        (Channels([2]), r"channels must be some of 0 to 1 and not all of them, got \[2\]"),
        (Channels([0, 1]), r"channels must be some of 0 to 1 and not all of them, got \[0, 1\]"),
        (Band(0.01, 0.4), "band 0.01 to 0.4 must keep some but not all, got nothing"),
        (Band(0, 2), "band 0 to 2 must keep some but not all, got all"),
        (Directions(orthonormal(2)), r"directions must be of the latents' size \(2, 4, 4\), got \(2, 5, 6\)"),
    ],
)
def test_latents_that_a_subspace_is_not_made_for_are_refused(projection, reason):
    with pytest.raises(ValueError, match=reason):
        projection(torch.zeros(1, 2, 4, 4))
