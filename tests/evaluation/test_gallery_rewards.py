"""Differentiable rewards: scikit-image's SSIM, the libraries' LPIPS, brightness by hand."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onbrand.evaluation import pairwise_ssim
from onbrand.evaluation.gallery_rewards import (
    brightness,
    brightness_report,
    brightness_split,
    lpips_diversity,
    ssim_diversity,
)
from PIL import Image


def gallery(n: int, *, height: int = 16, width: int = 20, seed: int = 0) -> torch.Tensor:
    """Smooth shapes under noise: similar enough that SSIM is far from 0."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / height
    pictures = 0.5 + 0.4 * np.sin(6 * x + 3 * y) * np.linspace(0.5, 1, n)[:, None, None, None]
    return torch.from_numpy((pictures + rng.normal(0, 0.1, (n, 3, height, width))).clip(0, 1))


def flat(*greys: float) -> torch.Tensor:
    return torch.tensor(greys)[:, None, None, None].expand(-1, 3, 12, 12)


@pytest.mark.parametrize("n", [2, 4])
def test_ssim_is_scikit_images(n):
    pixels = gallery(n)
    assert 0.1 < pairwise_ssim(pixels) < 0.9
    assert float(ssim_diversity(pixels)) == pytest.approx(-pairwise_ssim(pixels), rel=1e-9)
    assert float(ssim_diversity(pixels.float())) == pytest.approx(-pairwise_ssim(pixels), rel=1e-3)


def test_ssim_of_equal_pictures_is_one():
    assert float(ssim_diversity(gallery(1).expand(3, -1, -1, -1))) == pytest.approx(-1)


def test_the_gradient_of_ssim_is_that_of_differences():
    pixels = gallery(3, height=12, width=12).requires_grad_()
    assert torch.autograd.gradcheck(ssim_diversity, pixels)


def test_brightness_is_the_mean_of_the_largest_channel():
    pixels = torch.zeros(2, 3, 2, 2)
    pixels[0, 1] = 0.5
    pixels[1, :, 0, 0] = torch.tensor([0.2, 0.4, 0.8])
    torch.testing.assert_close(brightness(pixels), torch.tensor([0.5, 0.2]))


def test_a_split_by_hand():
    """Halves .9 .7 and .1 .2: means .8 and .15; inside, .2 and .1; in the middle .2 and .7."""
    report = brightness_report(flat(0.9, 0.7, 0.1, 0.2))
    assert report == pytest.approx((0.65, 0.65 + 0.18 * 0.3, 0.5), abs=1e-6)
    mixed = brightness_report(flat(0.9, 0.1, 0.7, 0.2), weight=1)
    assert mixed == pytest.approx((0.05, 0.05 + 0.8 + 0.5, 0.5), abs=1e-6)
    assert brightness_report(flat(0.3, 0.7)) == pytest.approx((0.4, 0.4, 0.4), abs=1e-6)
    # halves 0 .3 .6 and 1 1 1: the mean gap inside the first is (.3 + .6 + .3) / 3
    six = brightness_report(flat(0.0, 0.3, 0.6, 1.0, 1.0, 1.0), weight=0.5)
    assert six == pytest.approx((0.7, 0.7 + 0.5 * 0.4, 0.4), abs=1e-6)


def test_pictures_are_reported_as_their_pixels():
    pictures = [Image.new("RGB", (4, 4), (0, 0, grey)) for grey in (255, 255, 0, 51)]
    assert brightness_report(pictures) == pytest.approx((0.9, 0.9 + 0.18 * 0.2, 0.8))


@pytest.mark.parametrize("weight", [0.0, 0.18, 1.0])
def test_the_reward_is_the_reported_contrast(weight):
    pixels = gallery(4)
    reward = brightness_split(weight=weight)
    assert float(reward(pixels)) == pytest.approx(brightness_report(pixels, weight=weight).contrast)
    assert reward.__name__ == f"brightness_split({weight:g})"


def test_the_gradient_widens_the_split():
    pixels = flat(0.6, 0.5, 0.4, 0.3).clone().requires_grad_()
    brightness_split()(pixels).backward()
    towards = pixels.grad.sum(dim=(1, 2, 3))
    torch.testing.assert_close(towards, torch.tensor([0.68, 0.32, -0.32, -0.68]))


class Squares(torch.nn.Module):
    """Answers as lpips.LPIPS does, with squares instead of its network."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert (net, verbose) == ("vgg", False)
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, a: torch.Tensor, b: torch.Tensor, normalize: bool) -> torch.Tensor:
        assert normalize
        return self.weight * ((a - b) ** 2).mean(dim=(1, 2, 3), keepdim=True)


def test_lpips_comes_from_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Squares))
    reward, pixels = lpips_diversity(net="vgg"), flat(0.1, 0.3, 0.6).clone().requires_grad_()
    value = reward(pixels)
    assert value.item() == pytest.approx((0.04 + 0.09 + 0.25) / 3)
    value.backward()
    assert float(pixels.grad[2].sum()) == pytest.approx(2 * (0.3 + 0.5) / 3)
    assert reward.__name__ == "lpips_diversity(vgg)"


def test_without_lpips_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=r"LPIPS needs the lpips library.*pip install lpips torchvision"):
        lpips_diversity()


def test_what_cannot_be_rewarded_is_refused():
    with pytest.raises(ValueError, match=r"^net must be alex, vgg or squeeze, got 'resnet'$"):
        lpips_diversity(net="resnet")
    with pytest.raises(ValueError, match=r"^weight must be at least 0, got -1$"):
        brightness_split(weight=-1)
    with pytest.raises(ValueError, match=r"^pixels must be of shape \(N, 3, H, W\), got \(2, 1, 16, 16\)$"):
        ssim_diversity(torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match=r"^gallery must hold at least 2 pictures, got 1$"):
        ssim_diversity(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"^gallery must hold at least 1 picture, got 0$"):
        brightness(torch.zeros(0, 3, 16, 16))
    with pytest.raises(
        ValueError, match=r"^pictures must be at least 11 pixels a side for SSIM, got 16 x 10$"
    ):
        ssim_diversity(torch.zeros(2, 3, 10, 16))
    for split in (brightness_split(), brightness_report):
        with pytest.raises(
            ValueError, match=r"^gallery must hold an even number of pictures to split, got 3$"
        ):
            split(torch.zeros(3, 3, 4, 4))
