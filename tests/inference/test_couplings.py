"""Couplings: each noise standard normal, pairs correlated as the formula says, the same for the same seed."""

import pytest
import torch
from onbrand.inference import draw_noise
from onbrand.inference.contrastive import ContrastiveNoise
from onbrand.inference.couplings import (
    Antithetic,
    Band,
    Channels,
    Directions,
    Equicorrelated,
    FromCorrelation,
    FromMatrix,
    Identical,
    Independent,
    Mask,
    OnSubspace,
    Repulsive,
    by_name,
)
from scipy.stats import kstest

SHAPE = (4, 64, 64)
ENTRIES = 4 * 64 * 64
LOOSE = torch.tensor([[1.0, 0.5, -0.2, 0], [0.5, 1, 0, 0.3], [-0.2, 0, 1, -0.6], [0, 0.3, -0.6, 1]])
TALL = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8], [-0.8, 0.6]])
TOP = torch.zeros(64, 64)
TOP[:16] = 1


def unit_directions(count):
    drawn = torch.randn(ENTRIES, count, generator=torch.Generator().manual_seed(5))
    return torch.linalg.qr(drawn)[0].T.reshape(count, *SHAPE)


def equicorrelation(rho):
    return (1 - rho) * torch.eye(4) + rho * torch.ones(4, 4)


PAIRS = torch.tensor([[1.0, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]])
CORRELATIONS = [
    (Independent(), torch.eye(4)),
    (Identical(), torch.ones(4, 4)),
    (Antithetic(), PAIRS),
    (Repulsive(), equicorrelation(-1 / 3)),
    (Equicorrelated(-0.2), equicorrelation(-0.2)),
    (Equicorrelated(0.7), equicorrelation(0.7)),
    (FromMatrix(TALL), TALL @ TALL.T),
    (FromCorrelation(LOOSE), LOOSE),
    (OnSubspace(Mask(TOP), Identical(), Repulsive()), 0.25 + 0.75 * equicorrelation(-1 / 3)),
    (OnSubspace(Channels([1]), Repulsive(), Independent()), equicorrelation(-1 / 12)),
    (OnSubspace(Directions(unit_directions(3)), Identical(), Antithetic()), PAIRS),
]
NAMES = [
    "independent", "identical", "antithetic", "repulsive", "rho=-.2", "rho=.7", "matrix", "correlation",
    "mask", "channels", "directions",
]  # fmt: skip
every_coupling = pytest.mark.parametrize(("coupling", "expected"), CORRELATIONS, ids=NAMES)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@every_coupling
def test_each_noise_is_standard_normal(coupling, expected):
    drawn = coupling.draw(4, SHAPE, seeded(1))
    assert drawn.shape == (4, *SHAPE)
    assert drawn.dtype == torch.float32
    for eps in drawn.flatten(1).double():
        assert abs(float(eps.mean())) < 4 / ENTRIES**0.5
        assert abs(float(eps.var()) - 1) < 4 * (2 / ENTRIES) ** 0.5
        assert kstest(eps.numpy(), "norm").pvalue > 1e-3


@every_coupling
def test_pairs_are_correlated_as_the_formula_says(coupling, expected):
    eps = coupling.draw(4, SHAPE, seeded(2)).flatten(1)
    error = (eps @ eps.T / ENTRIES - expected).abs().max()
    assert error < 4.5 * (2 / ENTRIES) ** 0.5
    # between different entries of different pictures there is nothing
    moved = eps.roll(1, dims=1)
    assert (eps @ moved.T / ENTRIES).abs().max() < 4.5 / ENTRIES**0.5


@every_coupling
def test_a_seed_means_the_same_whatever_was_drawn_before(coupling, expected):
    drawn = coupling.draw(4, SHAPE, seeded(3))
    torch.manual_seed(99)
    other = coupling.draw(4, SHAPE, seeded(4))
    assert torch.equal(drawn, coupling.draw(4, SHAPE, seeded(3)))
    assert not torch.equal(drawn, other)


def test_independent_is_the_noise_without_a_coupling():
    default, coupled = draw_noise(2, 3, SHAPE, seeded()), seeded()
    assert torch.equal(default, draw_noise(2, 3, SHAPE, coupled, initializer=Independent()))


def test_all_start_from_the_same_noise_and_leave_the_generator_alike():
    plain, after = Independent().draw(4, SHAPE, g := seeded()), g.get_state()
    for coupling in (Identical(), Antithetic(), Repulsive(), Equicorrelated(0.3), FromCorrelation(LOOSE)):
        coupling.draw(4, SHAPE, g := seeded())
        assert torch.equal(g.get_state(), after)
    assert torch.equal(Identical().draw(4, SHAPE, seeded()), plain[:1].expand(4, *SHAPE))
    pairs = torch.stack([plain[0], -plain[0], plain[2], -plain[2]])
    assert torch.equal(Antithetic().draw(4, SHAPE, seeded()), pairs)
    repulsive = (4 / 3) ** 0.5 * (plain - plain.mean(0))
    torch.testing.assert_close(Repulsive().draw(4, SHAPE, seeded()), repulsive, rtol=0, atol=2e-6)
    torch.testing.assert_close(Equicorrelated(0.0).draw(4, SHAPE, seeded()), plain)


@pytest.mark.parametrize("n", [2, 3, 8, 33])
def test_repulsive_noises_sum_to_zero(n):
    assert Repulsive().draw(n, (4, 16, 16), seeded()).sum(0).abs().max() < 1e-5


@pytest.mark.parametrize("coupling", [Identical(), Antithetic(), Repulsive(), Equicorrelated(-0.4)])
def test_one_picture_has_the_plain_noise(coupling):
    assert torch.equal(coupling.draw(1, SHAPE, seeded()), torch.randn(1, *SHAPE, generator=seeded()))


def test_counts_that_a_coupling_is_not_made_for_are_refused():
    with pytest.raises(ValueError, match="num_images must be 4, the rows of the matrix, got 3"):
        FromMatrix(TALL).draw(3, SHAPE, None)
    with pytest.raises(ValueError, match="num_images must be 4, the rows of the matrix, got 3"):
        FromCorrelation(LOOSE).draw(3, SHAPE, None)
    with pytest.raises(ValueError, match="num_images must be even for antithetic noise, got 3"):
        Antithetic().draw(3, SHAPE, None)
    with pytest.raises(ValueError, match=r"rho must be between -0.333333 and 1 for 4 pictures, got -0.5"):
        Equicorrelated(-0.5).draw(4, SHAPE, None)


def test_what_cannot_be_a_coupling_is_refused_when_it_is_made():
    with pytest.raises(ValueError, match=r"rho must be between -1 and 1 .* got 1.5"):
        Equicorrelated(1.5)
    with pytest.raises(ValueError, match="must have unit norm, got 2 in row 0"):
        FromMatrix(2 * TALL)
    assert torch.allclose(FromMatrix(2 * TALL, normalise=True).A, TALL.double())
    with pytest.raises(ValueError, match=r"must be positive semidefinite, got the eigenvalue -1\.4"):
        FromCorrelation(equicorrelation(-0.8))


class Given:
    """Draws what it is given; remembers what it was asked."""

    def __init__(self, eps):
        self.eps = eps

    def draw(self, num_images, shape, generator):
        return self.eps


def test_a_region_has_one_noise_bit_for_bit_and_the_rest_the_other():
    xi, zeta = torch.randn(2, 3, *SHAPE, generator=seeded())
    drawn = OnSubspace(Mask(TOP), Given(xi), Given(zeta)).draw(3, SHAPE, None)
    assert torch.equal(drawn[:, :, :16], xi[:, :, :16])
    assert torch.equal(drawn[:, :, 16:], zeta[:, :, 16:])


def test_the_two_parts_are_drawn_after_each_other():
    g = seeded()
    xi, zeta = Independent().draw(2, SHAPE, g), Independent().draw(2, SHAPE, g)
    drawn = OnSubspace(Channels([0]), Independent(), Independent()).draw(2, SHAPE, seeded())
    assert torch.equal(drawn, torch.cat([xi[:, :1], zeta[:, 1:]], dim=1))


def test_a_subspace_within_a_subspace():
    low = OnSubspace(Band(0, 0.3), Identical(), Repulsive())
    nested = OnSubspace(Channels([0, 1]), low, Antithetic()).draw(2, SHAPE, seeded())
    assert (nested[0, 2:] + nested[1, 2:]).abs().max() == 0
    band = Band(0, 0.3)
    kept = band(nested)[:, :2]
    torch.testing.assert_close(kept[0], kept[1], rtol=0, atol=1e-5)
    rest = nested[:, :2] - kept
    torch.testing.assert_close(rest[0], -rest[1], rtol=0, atol=1e-5)


def test_a_function_is_a_projection_if_it_is_orthogonal():
    def halves(x):
        return (x + x.flip(-1)) / 2

    drawn = OnSubspace(halves, Identical(), Repulsive()).draw(2, SHAPE, seeded())
    torch.testing.assert_close(halves(drawn)[0], halves(drawn)[1])
    oblique = [
        (lambda x: 0.5 * x, "must change nothing the second time, got a change of"),
        (lambda x: x[:, :1].expand_as(x), "must be orthogonal, got <Px, y> and <x, Py> .* apart"),
        (lambda x: x[:, :1], r"must keep the shape \(1, 4, 64, 64\), got \(1, 1, 64, 64\)"),
    ]
    for wrong, reason in oblique:
        with pytest.raises(ValueError, match=f"projection {reason}"):
            OnSubspace(wrong, Identical(), Repulsive()).draw(2, SHAPE, seeded())


def test_parts_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"projection must be Mask, .* or a function, got Tensor"):
        OnSubspace(TOP, Identical(), Repulsive())
    with pytest.raises(ValueError, match="outside must have a method draw, got str"):
        OnSubspace(Mask(TOP), Identical(), "repulsive")
    with pytest.raises(
        ValueError, match="inside must draw noise without seeing the network, got ContrastiveNoise"
    ):
        OnSubspace(Mask(TOP), ContrastiveNoise(Identical()), Repulsive())


@pytest.mark.parametrize(
    ("name", "coupling"),
    [
        ("independent", Independent()), ("identical", Identical()), ("antithetic", Antithetic()),
        (" Repulsive ", Repulsive()), ("rho=-0.2", Equicorrelated(-0.2)), ("RHO = 1", None),
    ],
)  # fmt: skip
def test_names(name, coupling):
    if coupling is None:
        with pytest.raises(ValueError, match=r"coupling must be one of .* \(nearest: rho\), got 'RHO = 1'"):
            by_name(name)
    else:
        assert by_name(name) == coupling


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("repulsiv", r"coupling must be one of .* or rho=NUMBER \(nearest: repulsive\), got 'repulsiv'"),
        ("rho", r"or rho=NUMBER \(nearest: rho\), got 'rho'"),
        ("repulsive=1", r"\(nearest: repulsive\), got 'repulsive=1'"),
        ("", "or rho=NUMBER, got ''"),
        ("rho=rho", "rho must be a number, got 'rho'"),
        ("rho=2", "rho must be between -1 and 1"),
        ("rho=nan", "rho must be between -1 and 1 .*, got nan"),
    ],
)
def test_names_that_are_none_are_refused(name, reason):
    with pytest.raises(ValueError, match=reason):
        by_name(name)
