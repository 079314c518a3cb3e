import json
import re

import pytest
from onbrand.evaluation import limits as limits_module
from onbrand.evaluation import reference
from onbrand.evaluation.criteria import Range
from onbrand.evaluation.limits import Limits, limits_from
from onbrand.evaluation.look.foreground import look
from onbrand.evaluation.rules import compared
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


def test_a_class_of_which_hardly_an_outline_is_kept_has_the_pooled_pose(draw, monkeypatch):
    looks = [look(draw(seed=i)) for i in range(80)]
    classes = ["many"] * 40 + ["few"] * 40
    monkeypatch.setattr(reference, "MOST", 14)
    monkeypatch.setattr(limits_module, "FEWEST", 8)
    found = limits_from(looks, classes=classes)
    assert [found.reference.outlines.classes.count(name) for name in ("many", "few")] == [7, 7]
    assert all("pose" not in ranges and "extent" in ranges for ranges in found.by_class.values())
    assert found.of("few")["pose"] == found.pooled["pose"]
    # and is then compared with the outlines of all
    assert compared(looks[0], limits=found, class_name="few")["pose"] == 0


def test_a_catalogue_whose_kept_pictures_show_no_product_limits_no_pose(draw, monkeypatch):
    monkeypatch.setattr(reference, "MOST", 2)  # the first and the last
    blank = look(draw(colour=None))
    limits = limits_from([blank, *(look(draw(seed=i)) for i in range(6)), blank])
    assert limits.pooled["pose"] == Range(0, 1)
    assert Limits.from_dict(limits.to_dict()).pooled == limits.pooled


@pytest.mark.parametrize("lost", ["pooled", "backdrops", "clusters"])
def test_a_file_of_other_rules_is_named_with_what_to_do(lost, tmp_path, draw):
    file = tmp_path / "limits.json"
    limits_from([look(draw(seed=i)) for i in range(6)]).save(file)
    stored = json.loads(file.read_text())
    if lost == "pooled":
        del stored["pooled"]["pose"]
    else:
        del stored[lost]
    file.write_text(json.dumps(stored))
    todo = "delete limits.json and audit.json and start the run again, .*"
    told = "got .*" if lost == "pooled" else f"no '{lost}'"
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))} must hold limits as .*{todo}{told}"):
        Limits.load(file)
