import pytest
from onbrand.evaluation.criteria import Range
from onbrand.evaluation.foreground import look
from onbrand.evaluation.limits import Limits, limits_from
from PIL import Image


def test_blank_pictures_of_the_catalogue_leave_the_product_limits_alone(draw):
    shown = [look(draw(seed=i)) for i in range(30)]
    blank = look(draw(colour=None))
    with_blank, without = limits_from([*shown, blank]), limits_from(shown)
    for name in ("offset_x", "offset_y", "extent", "area", "lightness", "contrast"):
        assert with_blank.pooled[name] == without.pooled[name]
    assert with_blank.n == without.n + 1


def test_small_classes_are_judged_by_the_pooled_limits(draw_catalogue):
    measures = [look(p) for p in draw_catalogue(40, seed=3) + draw_catalogue(39, seed=4)]
    limits = limits_from(measures, classes=["big"] * 40 + ["small"] * 39)
    assert list(limits.by_class) == ["big"]
    assert limits.class_counts == {"big": 40, "small": 39}
    assert limits.of("small") == limits.of(None) == limits.pooled
    assert limits.of("big")["background"] == limits.pooled["background"]
    assert limits.of("big")["extent"] != limits.pooled["extent"]


def test_limits_survive_json(tmp_path, draw_catalogue):
    measures = [look(p) for p in draw_catalogue(45, seed=3)]
    limits = limits_from(measures, classes=["mug"] * 45)
    limits.save(tmp_path / "deep" / "limits.json")
    assert Limits.load(tmp_path / "deep" / "limits.json") == limits
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["limits.json"]
    assert isinstance(Limits.load(tmp_path / "deep" / "limits.json").of("mug")["area"], Range)


def test_limits_of_other_rules_are_refused(draw):
    stored = limits_from([look(draw())]).to_dict()
    del stored["pooled"]["area"]
    with pytest.raises(ValueError, match=r"limits must be for \['area', 'background'.*, got \['background'"):
        Limits.from_dict(stored)


def test_an_unknown_class_is_refused_with_the_nearest_one(draw):
    limits = limits_from([look(draw())] * 2, classes=["bottle", "mug"])
    message = r"class must be one of the reference's \(bottle, mug\), got 'mgu' \(did you mean 'mug'\?\)"
    with pytest.raises(ValueError, match=message):
        limits.of("mgu")


def test_a_catalogue_without_pictures_or_products_is_refused():
    with pytest.raises(ValueError, match="reference must be at least one picture, got none"):
        limits_from([])
    blank = look(Image.new("RGB", (64, 64), "white"))
    with pytest.raises(
        ValueError, match="reference must show products on a backdrop, got none in 2 pictures"
    ):
        limits_from([blank, blank])
