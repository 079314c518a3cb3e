import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.evaluation.foreground import measure
from onbrand.evaluation.rules import (
    CRITERIA,
    FLOORS,
    LEVEL,
    RULES,
    TOTAL_LEVEL,
    Limits,
    Range,
    allowed_range,
    judge,
    limits_from,
    tail_limit,
)
from PIL import Image

numbers = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=1, max_size=60)


def test_the_levels_of_all_one_sided_limits_add_up_to_the_total():
    sides = sum(1 + criterion.two_sided for criterion in CRITERIA.values())
    assert sides * LEVEL == pytest.approx(TOTAL_LEVEL)


def test_many_values_give_the_order_statistic():
    values = np.random.default_rng(0).permutation(1999).astype(float)
    assert tail_limit(values, level=0.001) == 1997


@pytest.mark.parametrize("n", [12, 40, 160])
def test_few_exponential_values_are_exceeded_at_the_level(n):
    rng = np.random.default_rng(n)
    limits = np.array([tail_limit(rng.exponential(size=n), level=LEVEL) for _ in range(4000)])
    # the chance that one more exponential draw exceeds a limit x is exp(-x)
    assert np.exp(-limits).mean() == pytest.approx(LEVEL, rel=0.25)


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
        middle = 0.5 if criterion.highest == 1 else 0.0 if criterion.highest == 0.5 else 50.0
        floor, why = FLOORS[name]
        assert why
        if criterion.two_sided:
            low, high = allowed_range(np.full(30, middle), criterion=criterion)
            assert (low, high) == pytest.approx((middle - floor, middle + floor))
        else:
            assert allowed_range(np.zeros(30), criterion=criterion) == (0, floor)


def test_the_floors_are_the_stated_just_visible_steps():
    assert {name: floor for name, (floor, _) in FLOORS.items()} == {
        "background": 3, "uniformity": 3, "frame_contact": 0.02, "offset_x": 0.02, "offset_y": 0.02,
        "extent": 0.02, "area": 0.02, "lightness": 3, "contrast": 3,
    }  # fmt: skip


def test_ranges_stay_within_what_is_possible():
    low, high = allowed_range(np.array([0.1, 0.9, 0.2, 0.8]), criterion=CRITERIA["extent"])
    assert (low, high) == (0, 1)


def test_a_picture_at_the_limit_passes_and_beyond_it_fails(draw):
    values = measure(draw())
    limits = limits_from([values] * 30)
    at, beyond = (dict(values, offset_x=limits.pooled["offset_x"].high + step) for step in (0, 1e-6))
    assert judge(at, limits=limits) == []
    assert [failure.rule for failure in judge(beyond, limits=limits)] == ["centring"]


def test_a_blank_picture_breaks_scale_alone_however_varied_the_catalogue(draw):
    limits = limits_from([measure(draw(size=(s, s))) for s in (0.2, 0.4, 0.6, 0.8)])
    assert limits.pooled["area"].low == 0
    failures = judge(measure(draw(colour=None)), limits=limits)
    assert failures == [("scale", "no product stands out from the backdrop")]


def test_blank_pictures_of_the_catalogue_leave_the_product_limits_alone(draw):
    shown = [measure(draw(seed=i)) for i in range(30)]
    blank = measure(draw(colour=None))
    with_blank, without = limits_from([*shown, blank]), limits_from(shown)
    for name in ("offset_x", "offset_y", "extent", "area", "lightness", "contrast"):
        assert with_blank.pooled[name] == without.pooled[name]
    assert with_blank.n == without.n + 1


def test_small_classes_are_judged_by_the_pooled_limits(draw_catalogue):
    measures = [measure(p) for p in draw_catalogue(40, seed=3) + draw_catalogue(39, seed=4)]
    limits = limits_from(measures, classes=["big"] * 40 + ["small"] * 39)
    assert list(limits.by_class) == ["big"]
    assert limits.class_counts == {"big": 40, "small": 39}
    assert limits.of("small") == limits.of(None) == limits.pooled
    assert limits.of("big")["background"] == limits.pooled["background"]
    assert limits.of("big")["extent"] != limits.pooled["extent"]


def test_limits_survive_json(tmp_path, draw_catalogue):
    measures = [measure(p) for p in draw_catalogue(45, seed=3)]
    limits = limits_from(measures, classes=["mug"] * 45)
    limits.save(tmp_path / "deep" / "limits.json")
    assert Limits.load(tmp_path / "deep" / "limits.json") == limits
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["limits.json"]
    assert isinstance(Limits.load(tmp_path / "deep" / "limits.json").of("mug")["area"], Range)


def test_limits_of_other_rules_are_refused(draw):
    stored = limits_from([measure(draw())]).to_dict()
    del stored["pooled"]["area"]
    with pytest.raises(ValueError, match=r"limits must be for \['area', 'background'.*, got \['background'"):
        Limits.from_dict(stored)


def test_an_unknown_class_is_refused_with_the_nearest_one(draw):
    limits = limits_from([measure(draw())] * 2, classes=["bottle", "mug"])
    message = r"class must be one of the reference's \(bottle, mug\), got 'mgu' \(did you mean 'mug'\?\)"
    with pytest.raises(ValueError, match=message):
        limits.of("mgu")


def test_a_catalogue_without_pictures_or_products_is_refused():
    with pytest.raises(ValueError, match="reference must be at least one picture, got none"):
        limits_from([])
    blank = measure(Image.new("RGB", (64, 64), "white"))
    with pytest.raises(
        ValueError, match="reference must show products on a backdrop, got none in 2 pictures"
    ):
        limits_from([blank, blank])


def test_rules_are_named_in_the_order_they_are_reported():
    assert RULES == ("background", "uniformity", "cropping", "centring", "scale", "light")
