import math

import numpy as np
import pytest
from onbrand.evaluation.look.box import box_of
from onbrand.evaluation.look.shading import light_slope


def lit(slope: float, *, pattern: str = "plain", albedo: float = 0.3):
    """CIE L and mask of a product whose luminance is albedo * exp(slope * u), u from -1 to 1 across it."""
    mask = np.zeros((96, 96), dtype=bool)
    mask[20:80, 28:68] = True
    u = (np.arange(96) + 0.5 - 48) / 20
    luminance = np.tile(albedo * np.exp(slope * u), (96, 1))
    y, x = np.mgrid[:96, :96]
    if pattern == "striped":
        luminance = np.where(y // 6 % 2 == 0, luminance, 2 * luminance)
    if pattern == "dotted":
        luminance = np.where((x % 11 < 4) & (y % 11 < 4), 2.5 * luminance, luminance)
    return 116 * np.cbrt(luminance) - 16, mask


@pytest.mark.parametrize("slope", [-0.4, 0.0, 0.2])
@pytest.mark.parametrize("pattern", ["plain", "striped", "dotted"])
@pytest.mark.parametrize("albedo", [0.08, 0.3])
def test_the_slope_is_that_of_the_light_whatever_the_colour(slope, pattern, albedo):
    lightness, mask = lit(slope, pattern=pattern, albedo=albedo)
    assert light_slope(lightness, mask, box_of(mask)) == pytest.approx(slope, abs=0.02)


def test_mirroring_turns_the_sign():
    lightness, mask = lit(0.3)
    turned = light_slope(lightness[:, ::-1], mask[:, ::-1], box_of(mask[:, ::-1]))
    assert turned == pytest.approx(-light_slope(lightness, mask, box_of(mask)))


def test_a_shadow_at_the_foot_is_left_out():
    lightness, mask = lit(0.3)
    shadowed = lightness.copy()
    shadowed[73:80, 28:48] = 5
    box = box_of(mask)
    assert light_slope(shadowed, mask, box) == light_slope(lightness, mask, box)


def test_a_product_too_narrow_to_tell_has_none():
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:50, 30:34] = True
    assert math.isnan(light_slope(np.full((64, 64), 50.0), mask, box_of(mask)))
