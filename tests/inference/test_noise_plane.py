"""The noise plane on maps whose cosines and slopes are known, and its picture."""

import math

import numpy as np
import pytest
import torch
from onbrand.inference import OffsetStableDiffusionPipeline
from onbrand.inference.noise_plane import (
    COLOURS,
    NoisePlane,
    drawing,
    noise_plane,
    plane_noises,
    plane_picture,
    slope,
)
from onbrand.inference.skip_gradient import Fixed

SHAPE = (4, 8, 8)
AXIS = [-0.5, 0.0, 0.5, 1.0, 1.5]


@pytest.fixture
def corners(generator):
    """Three noises of norm 1, orthogonal."""
    q, _ = torch.linalg.qr(torch.randn(math.prod(SHAPE), 3, generator=generator))
    return q.T.reshape(3, *SHAPE).contiguous()


def as_it_is(eps):
    """A map that draws the noise itself, and the descriptor of such pictures."""
    return eps


def flattened(pictures):
    return pictures.flatten(1)


def test_points_are_where_they_are_said_to_be(corners):
    alphas, betas = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.25, 1.0])
    noises = plane_noises(corners, alphas, betas)
    assert noises.shape == (3, 2, *SHAPE)
    torch.testing.assert_close(noises[0, 0], corners[0])
    torch.testing.assert_close(noises[0, 1], corners[1])
    torch.testing.assert_close(noises[2, 0], corners[2])
    one, two, three = corners
    torch.testing.assert_close(noises[1, 1], one + (two - one) + 0.25 * (three - one))


def test_unit_variance_keeps_noise_as_strong_as_it_is(generator):
    corners = torch.randn(3, 4, 64, 64, generator=generator)
    third = torch.tensor([1 / 3])
    weak, strong = (plane_noises(corners, third, third, unit_variance=unit).var() for unit in (False, True))
    assert float(weak) == pytest.approx(1 / 3, rel=0.05)
    assert float(strong) == pytest.approx(1, rel=0.05)
    torch.testing.assert_close(
        plane_noises(corners, torch.tensor([0.0, 1.0]), torch.tensor([0.0]), unit_variance=True)[0],
        corners[:2],
    )


def test_scores_are_cosines_with_the_nearest_corner(corners):
    asked = []
    plane = noise_plane(
        as_it_is, flattened, corners, alphas=AXIS, betas=AXIS[1:4], batch_size=4, advance=asked.append
    )
    assert sum(asked) == 3 * 5 + 3
    assert plane.scores.shape == plane.nearest.shape == plane.slopes.shape == (3, 5)
    for i, beta in enumerate(AXIS[1:4]):
        for j, alpha in enumerate(AXIS):
            shares = np.array([1 - alpha - beta, alpha, beta])
            expected = shares / np.linalg.norm(shares)
            assert float(plane.scores[i, j]) == pytest.approx(expected.max(), abs=1e-6)
            assert expected[int(plane.nearest[i, j])] == pytest.approx(expected.max())
    assert plane.nearest[0, 1] == 0
    assert plane.nearest[0, 3] == 1
    assert plane.nearest[2, 1] == 2


def test_the_slope_of_a_linear_map(corners, generator):
    """Along alpha and beta a linear map has one slope each, and the steeper one is found."""
    noises = plane_noises(corners, torch.tensor(AXIS), torch.tensor(AXIS))
    direction = torch.randn(SHAPE, generator=generator)
    values = (noises * direction).flatten(2).sum(dim=2)
    one, two, three = corners
    along = [float((direction * (end - one)).sum() / (end - one).norm()) for end in (two, three)]
    expected = torch.full((5, 5), max(map(abs, along)), dtype=torch.float64)
    torch.testing.assert_close(slope(values, noises), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slope(3 * noises, noises), torch.full_like(expected, 3.0))
    torch.testing.assert_close(slope(values[:1], noises[:1])[0, 0], torch.tensor(abs(along[0])).double())
    assert not slope(values[:1, :1], noises[:1, :1]).any()


def test_a_jump_shows_on_both_of_its_sides(corners):
    noises = plane_noises(corners, torch.tensor(AXIS), torch.tensor(AXIS))
    values = torch.zeros(5, 5)
    values[:, 3:] = 1
    gap = float((noises[0, 3] - noises[0, 2]).norm())
    found = slope(values, noises)
    assert found[:, [0, 1, 4]].abs().max() == 0
    torch.testing.assert_close(found[:, 2:4], torch.full((5, 2), 1 / gap, dtype=torch.float64))


def test_of_a_pipeline_the_corners_are_its_own_pictures(tiny, generator):
    pipeline = OffsetStableDiffusionPipeline(**tiny.make_components())
    pipeline.set_progress_bar_config(disable=True)
    corners = torch.randn(3, *SHAPE, generator=generator)
    seen = []

    def describe(pictures):
        seen.extend(pictures)
        return torch.stack([torch.tensor(np.asarray(picture) / 127.5 - 1).flatten() for picture in pictures])

    plane = noise_plane(
        drawing(pipeline, "a mug", guidance_scale=2.0), describe, corners, alphas=[0.0, 1.0], betas=[0.0, 1.0]
    )
    torch.testing.assert_close(plane.scores[[0, 0, 1], [0, 1, 0]], torch.ones(3, dtype=torch.float64))
    assert plane.nearest[[0, 0, 1], [0, 1, 0]].tolist() == [0, 1, 2]
    assert plane.slopes.min() > 0
    call = {"num_inference_steps": 20, "guidance_scale": 2.0, "num_images_per_prompt": 3}
    own = pipeline("a mug", noise=Fixed(corners), **call).images
    for picture, expected in zip(seen, own, strict=False):
        gap = np.asarray(picture).astype(int) - np.asarray(expected).astype(int)
        assert abs(gap).max() <= 1


def made_up(alphas=(-0.5, 0.5, 1.5), betas=(0.0, 1.0)):
    scores = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 1.0]])[: len(betas), : len(alphas)]
    nearest = torch.zeros_like(scores, dtype=torch.int64)
    return NoisePlane(torch.tensor(alphas), torch.tensor(betas), scores, nearest, scores)


def middles(sheet):
    """The colours in the middles of the cells of the sheet, rows from the top; cells are 140 pixels."""
    pixels = np.asarray(sheet)
    # the frame begins where the first cell's colour does
    top, left = 24 + 22, 24 + 52
    return [[tuple(pixels[top + 70 + 140 * i, left + 70 + 140 * j]) for j in range(3)] for i in range(2)]


def test_the_picture_has_beta_upwards():
    low, high = COLOURS[0], COLOURS[-1]
    upper, lower = middles(plane_picture(made_up()))
    assert upper == [high, low, high]
    assert lower == [low, high, COLOURS[2]]
    _, lower = middles(plane_picture(made_up(), values=made_up().scores * 4, highest=8.0))
    assert lower == [low, COLOURS[2], COLOURS[1]]


def test_the_picture_tells_title_corners_and_borders():
    plain = plane_picture(made_up())
    assert plane_picture(made_up(), title="DDIM, 20 steps").size[1] > plain.size[1]
    long = plane_picture(made_up(), title="A title that is longer than the plane is wide, " * 3)
    assert long.size[0] > plain.size[0]
    # corners 1 and 3 lie on the border of the first two columns, corner 2 on that of the last two
    pixels = np.asarray(plain)
    for number, (column, row) in {1: (1, 1.5), 2: (2, 1.5), 3: (1, 0.5)}.items():
        y, x = round(46 + 140 * row), round(76 + 140 * column)
        inked = (pixels[y - 7 : y + 8, x - 7 : x + 8] < 60).all(axis=2).sum()
        assert inked > 5, number
    far = made_up(alphas=(2.0, 3.0, 4.0))
    assert (np.asarray(plane_picture(far))[46:326, 76:496] < 30).all(axis=2).sum() == 0
    assert not (pixels == 255).all(axis=2).any()
    divided = made_up()._replace(nearest=torch.tensor([[0, 1, 1], [0, 0, 1]]))
    white = (np.asarray(plane_picture(divided)) == 255).all(axis=2)
    assert white[46 + 70, 76 + 280]
    assert white[46 + 190, 76 + 140]
    assert white[46 + 140, 76 + 210]


CORNERS = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(5))
WRONG = {
    "two corners": (
        lambda: noise_plane(as_it_is, flattened, CORNERS[:2], alphas=AXIS, betas=AXIS),
        r"corners must be of shape \(3, C, H, W\), got \(2, 4, 8, 8\)",
    ),
    "equal corners": (
        lambda: noise_plane(as_it_is, flattened, CORNERS[[0, 1, 0]], alphas=AXIS, betas=AXIS),
        "corners must be three different noises, got equal ones",
    ),
    "alphas fall": (
        lambda: noise_plane(as_it_is, flattened, CORNERS, alphas=[1.0, 0.0], betas=AXIS),
        r"alphas must be a list of rising values, got \[1.0, 0.0\]",
    ),
    "no betas": (
        lambda: noise_plane(as_it_is, flattened, CORNERS, alphas=AXIS, betas=[]),
        r"betas must be a list of rising values, got \[\]",
    ),
    "a descriptor of another shape": (
        lambda: noise_plane(as_it_is, lambda x: x, CORNERS, alphas=[0.0], betas=[0.0]),
        r"features must be of shape \(4, D\), got \(4, 4, 8, 8\)",
    ),
    "pictures that are missing": (
        lambda: noise_plane(lambda eps: eps[1:], flattened, CORNERS, alphas=[0.0], betas=[0.0]),
        r"features must be of shape \(4, D\), got \(3, 256\)",
    ),
    "other values": (
        lambda: plane_picture(made_up(), values=torch.zeros(2, 2)),
        r"values must be of shape \(2, 3\), got \(2, 2\)",
    ),
    "no scale": (lambda: plane_picture(made_up(), highest=0.0), "highest must be positive, got 0.0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()
