import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onbrand.evaluation import (
    boundary_tv,
    brisque,
    l2_background,
    load_lpips,
    lpips_background,
    pairwise_l2,
    rmse_foreground,
)
from onbrand.evaluation.scenes import boundary_band
from PIL import Image, ImageDraw
from skimage.morphology import dilation, disk, erosion

SIDE = 32


@pytest.fixture
def mask() -> np.ndarray:
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[8:24, 10:26] = True
    return inside


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(3, 3, SIDE, SIDE))


def test_the_foreground_error_is_each_pictures_own(pixels, mask):
    original = np.full((3, SIDE, SIDE), 0.5)
    gallery = np.where(mask, np.array([0.5, 0.6, 0.2])[:, None, None, None], pixels)
    assert rmse_foreground(gallery, original, mask) == pytest.approx((0 + 0.1 + 0.3) / 3)
    assert rmse_foreground(gallery[::-1].copy(), torch.tensor(original), mask) == pytest.approx(0.4 / 3)


def test_the_foreground_error_takes_pil_pictures(mask):
    original = Image.new("RGB", (SIDE, SIDE), (100, 100, 100))
    gallery = [
        Image.new("RGB", (SIDE, SIDE), (100, 100, 100)),
        Image.new("RGB", (SIDE, SIDE), (100, 151, 100)),
    ]
    expected = 51 / 255 / np.sqrt(3) / 2
    assert rmse_foreground(gallery, original, Image.fromarray(mask)) == pytest.approx(expected)


def test_an_original_of_another_size_is_refused(pixels, mask):
    message = r"^original must be of the pictures' height and width \(32, 32\), got \(16, 32\)$"
    with pytest.raises(ValueError, match=message):
        rmse_foreground(pixels, np.zeros((3, 16, SIDE)), mask)


def test_background_distance_sees_the_background_alone(pixels, mask):
    other = np.where(mask, 0.0, pixels)
    other[0] = np.where(mask, 1.0, pixels[0])
    distance = l2_background(pixels, mask)
    assert l2_background(other, mask) == distance
    weights = mask.mean()
    assert pairwise_l2(pixels) == pytest.approx(
        (1 - weights) * distance + weights * l2_background(pixels, ~mask)
    )
    kept = np.where(mask, pixels, 0.25)
    assert l2_background(kept, mask) == 0
    assert l2_background(kept, ~mask) > 0


def test_lpips_is_averaged_over_pairs_and_background(pixels, mask):
    def squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a - b) ** 2).mean(axis=0)

    expected = l2_background(pixels, mask)
    assert lpips_background(pixels, mask, distance=squares) == pytest.approx(expected)
    assert lpips_background(pixels[::-1].copy(), mask, distance=squares) == pytest.approx(expected)


def test_lpips_sees_nothing_of_the_object(pixels, mask):
    def whole(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.full((SIDE, SIDE), np.abs(a - b).sum())

    other = np.where(mask, 1 - pixels, pixels)
    assert lpips_background(other, mask, distance=whole) == lpips_background(pixels, mask, distance=whole)
    kept = np.where(mask, pixels, 0.25)
    assert lpips_background(kept, mask, distance=whole) == 0


class Loss(torch.nn.Module):
    """Answers as lpips.LPIPS does, with squares instead of its network."""

    def __init__(self, net: str, spatial: bool, verbose: bool) -> None:
        super().__init__()
        assert (net, spatial, verbose) == ("alex", True, False)

    def forward(self, a: torch.Tensor, b: torch.Tensor, normalize: bool) -> torch.Tensor:
        assert a.dtype == torch.float32
        assert normalize
        return ((2 * a - 2 * b) ** 2).mean(dim=1, keepdim=True)


def test_lpips_comes_from_its_library(pixels, mask, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Loss))
    expected = 4 * l2_background(pixels, mask)
    assert lpips_background(pixels, mask) == pytest.approx(expected, rel=1e-5)


def test_brisque_is_one_a_picture_from_its_library(pixels, monkeypatch):
    def answer(x: torch.Tensor, data_range: float) -> torch.Tensor:
        assert x.shape == (1, 3, SIDE, SIDE)
        assert data_range == 1
        return x.sum()

    monkeypatch.setitem(sys.modules, "piq", SimpleNamespace(brisque=answer))
    np.testing.assert_allclose(brisque(pixels), pixels.sum(axis=(1, 2, 3)), rtol=1e-5)


def test_missing_libraries_are_named(pixels, monkeypatch):
    for library in ("lpips", "piq"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ImportError, match=r"^LPIPS needs the lpips library and torchvision: pip install lpips torchvision \("
    ):
        load_lpips()
    with pytest.raises(
        ImportError,
        match=r"^BRISQUE needs the piq library and torchvision: pip install piq torchvision \(",
    ):
        brisque(pixels)


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"^net must be alex, vgg or squeeze, got 'resnet'$"):
        load_lpips(net="resnet")


def test_a_step_at_the_edge_is_one_difference_a_row():
    """The band is 10 columns wide, each of its rows steps by one once."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[:, 16:] = True
    picture = np.broadcast_to(mask, (3, SIDE, SIDE)).astype(float)
    assert boundary_tv(picture, mask) == pytest.approx(1 / 10)
    assert boundary_tv(picture * [[[0.5]], [[0]], [[0]]], mask) == pytest.approx(1 / 60)
    assert boundary_tv(picture.transpose(0, 2, 1), mask.T) == pytest.approx(1 / 10)
    assert boundary_tv(Image.fromarray(mask).convert("RGB"), mask) == pytest.approx(1 / 10)
    assert boundary_tv(1 - picture, ~mask) == pytest.approx(1 / 10)


def test_a_step_beside_the_band_does_not_count():
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[:, 16:] = True
    for column, expected in ((10, 0), (11, 0), (12, 0.1), (16, 0.1), (20, 0.1), (21, 0)):
        picture = np.zeros((3, SIDE, SIDE))
        picture[:, :, column:] = 1
        assert boundary_tv(picture, mask) == pytest.approx(expected), column


def test_a_ramp_has_its_slope_at_every_pixel():
    """Inside a band of 10 columns there are 9 differences across and, of 32 rows, none down."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[:, 16:] = True
    picture = np.broadcast_to(np.linspace(0, 1, SIDE), (3, SIDE, SIDE))
    assert boundary_tv(picture, mask) == pytest.approx(9 / 10 / 31)


def test_the_band_is_dilation_minus_erosion_by_a_disk():
    image = Image.new("1", (64, 48))
    ImageDraw.Draw(image).ellipse((10, 5, 50, 40), fill=1)
    ImageDraw.Draw(image).rectangle((0, 30, 12, 47), fill=1)
    mask = np.asarray(image)
    expected = dilation(mask, disk(5), mode="ignore") & ~erosion(mask, disk(5), mode="ignore")
    np.testing.assert_array_equal(boundary_band(mask), expected)
    assert not boundary_band(mask)[47, 0]  # the frame is no edge


@pytest.mark.parametrize("metric", [l2_background, lpips_background])
def test_a_pair_takes_two_pictures(metric, pixels, mask):
    with pytest.raises(ValueError, match=r"^gallery must hold at least 2 pictures, got 1$"):
        metric(pixels[:1], mask)


def test_a_mask_of_another_size_is_refused_everywhere(pixels):
    message = r"^mask must be of the pictures' height and width \(32, 32\), got \(4, 4\)$"
    for measure in (
        lambda mask: rmse_foreground(pixels, pixels[0], mask),
        lambda mask: l2_background(pixels, mask),
        lambda mask: lpips_background(pixels, mask),
        lambda mask: boundary_tv(pixels[0], mask),
    ):
        with pytest.raises(ValueError, match=message):
            measure(np.eye(4))
