import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.evaluation.criteria import (
    CRITERIA,
    FLOORS,
    LEVEL,
    RULES,
    TOTAL_LEVEL,
    allowed_range,
    tail_limit,
    tail_shape,
)
from scipy import stats

numbers = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=60)


def test_the_levels_of_all_one_sided_limits_add_up_to_the_total():
    sides = sum(1 + (criterion.sides == "both") for criterion in CRITERIA.values())
    assert sides * LEVEL == pytest.approx(TOTAL_LEVEL)


def test_many_values_give_the_order_statistic():
    values = np.random.default_rng(0).permutation(1999).astype(float)
    assert tail_limit(values, level=0.001) == 1997


@pytest.mark.parametrize("n", [12, 40, 160])
def test_few_exponential_values_are_exceeded_at_the_level(n):
    rng = np.random.default_rng(n)
    limits = np.array([tail_limit(rng.exponential(size=n), level=LEVEL) for _ in range(4000)])
    # the chance that one more exponential draw exceeds a limit x is exp(-x)
    assert np.exp(-limits).mean() == pytest.approx(LEVEL, rel=0.35)


@pytest.mark.parametrize("n", [160, 1000])
@pytest.mark.parametrize("name", ["norm", "uniform", "beta"])
def test_few_values_of_a_short_tail_are_exceeded_no_more_often_and_their_limit_is_near(name, n):
    law = {"norm": stats.norm, "uniform": stats.uniform, "beta": stats.beta(2, 5)}[name]
    rng = np.random.default_rng(n)
    limits = np.array([tail_limit(law.rvs(size=n, random_state=rng), level=LEVEL) for _ in range(300)])
    assert law.sf(limits).mean() < LEVEL
    quartile, wanted = law.ppf(0.75), law.ppf(1 - LEVEL)
    assert np.median(limits) - quartile < {160: 1.9, 1000: 1.4}[n] * (wanted - quartile)


def test_a_tail_is_bounded_only_where_that_is_clear():
    rng = np.random.default_rng(0)
    exponential = [tail_shape(np.sort(rng.exponential(size=100))) for _ in range(300)]
    assert np.mean(np.array(exponential) < 0) < 0.1
    uniform = [tail_shape(np.sort(rng.uniform(size=100))) for _ in range(300)]
    assert np.mean(uniform) == pytest.approx(-1 + 1.5 * 2 * (4 / 300) ** 0.5, abs=0.1)
    assert tail_shape(np.ones(9)) == tail_shape(np.ones(1)) == 0


@settings(max_examples=25, deadline=None)
@given(values=numbers, shift=st.floats(-50, 50), scale=st.floats(0.1, 10))
def test_tail_limits_move_and_stretch_with_the_values(values, shift, scale):
    values = np.array(values)
    moved = tail_limit(values * scale + shift, level=0.01)
    assert moved == pytest.approx(tail_limit(values, level=0.01) * scale + shift, rel=1e-6, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(values=numbers)
def test_few_values_all_lie_within_their_limit_and_a_stricter_level_widens_it(values):
    values = np.array(values)
    assert max(values) <= tail_limit(values, level=0.01) <= tail_limit(values, level=0.001)


def test_every_floor_holds_when_all_values_are_the_same():
    for name, criterion in CRITERIA.items():
        middle = {0.5: 0.0, 1: 0.5, 10: 0.0}.get(criterion.highest, 50.0)
        floor, why = FLOORS[name]
        assert why
        low, high = allowed_range(np.full(30, middle), criterion=criterion)
        if criterion.sides == "high":
            assert allowed_range(np.zeros(30), criterion=criterion) == (0, floor)
        else:
            assert low == pytest.approx(middle - floor)
            assert high == pytest.approx(middle + floor if criterion.sides == "both" else criterion.highest)


def test_the_floors_are_the_stated_just_visible_steps():
    assert {name: floor for name, (floor, _) in FLOORS.items()} == {
        "background": 3, "uniformity": 3, "frame_contact": 0.02, "offset_x": 0.02, "offset_y": 0.02,
        "extent": 0.02, "area": 0.02, "pose": 0.1, "lightness": 3, "contrast": 3, "light_slope": 0.1,
        "shadow": 1, "shadow_depth": 3, "kind": 1.25, "text": 0.02,
    }  # fmt: skip


def test_ranges_stay_within_what_is_possible():
    low, high = allowed_range(np.array([0.1, 0.9, 0.2, 0.8]), criterion=CRITERIA["extent"])
    assert (low, high) == (0, 1)


def test_what_was_measured_nowhere_is_not_limited():
    assert allowed_range(np.array([np.nan, np.nan]), criterion=CRITERIA["light_slope"]) == (-10, 10)


def test_rules_are_named_in_the_order_they_are_reported():
    assert RULES == (
        "background", "uniformity", "cropping", "centring", "scale", "pose", "light", "shadow", "kind",
    )  # fmt: skip
