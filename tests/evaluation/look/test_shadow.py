import math

import numpy as np
import pytest
from onbrand.evaluation.look.box import box_of
from onbrand.evaluation.look.shadow import shadow_of

WHITE = np.array([98.0, 0.0, 0.0])


def scene(*, side: int = 128, depth: float = 0.0, hue: float = 0.0):
    """Lab of a dark product on white with a soft round shadow at its foot, and the product's mask."""
    lab = np.tile(WHITE, (side, side, 1)).astype(np.float32)
    y, x = np.mgrid[:side, :side] / side
    shade = np.exp(-(((x - 0.5) / 0.25) ** 2) - ((y - 0.75) / 0.05) ** 2)
    lab[..., 0] -= depth * shade
    lab[..., 1] += hue * shade
    mask = (abs(x - 0.5) < 0.2) & (abs(y - 0.5) < 0.25)
    lab[mask] = (20, 30, 30)
    return lab, WHITE.astype(np.float32), mask, box_of(mask)


def test_no_shadow_measures_nothing():
    assert shadow_of(*scene()) == {"shadow": 0, "shadow_depth": 0}


def test_both_measures_grow_with_the_shadow():
    found = [shadow_of(*scene(depth=depth)) for depth in (2, 5, 10, 20)]
    for name in ("shadow", "shadow_depth"):
        values = [values[name] for values in found]
        assert values == sorted(values)
        assert values[-1] > 5 * values[0]


def test_the_depth_is_the_darkest_of_the_shadow():
    # at the foot itself the shadow is at its full depth, less what its ends lose over the product's width
    assert shadow_of(*scene(depth=12))["shadow_depth"] == pytest.approx(10, abs=1.5)


def test_the_size_of_the_picture_matters_little():
    small, large = (shadow_of(*scene(side=side, depth=12)) for side in (64, 256))
    for name in small:
        assert small[name] == pytest.approx(large[name], rel=0.2)


def test_what_is_coloured_is_no_shadow():
    plain, coloured = (shadow_of(*scene(depth=12, hue=hue))["shadow_depth"] for hue in (0, 15))
    assert coloured < plain / 2


def test_a_product_that_fills_the_picture_has_no_backdrop_to_darken():
    lab, white, mask, _ = scene()
    everything = np.ones_like(mask)
    assert math.isnan(shadow_of(lab, white, everything, box_of(everything))["shadow"])
