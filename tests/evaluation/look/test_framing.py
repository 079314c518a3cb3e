import numpy as np
import pytest
from onbrand.evaluation import audit, calibrate
from onbrand.evaluation.look import framing
from onbrand.evaluation.look.foreground import border_ring
from onbrand.evaluation.look.framing import fit_for, one_shape, shrunk, squared
from PIL import Image


def test_shapes_are_one_within_2_percent():
    assert one_shape(iter([(400, 300), (101, 75), (80, 60)]))
    assert not one_shape([(400, 300), (300, 400)])
    assert fit_for([]) is fit_for([(9, 9)]) is shrunk
    assert fit_for([(9, 9), (9, 12)]) is squared


@pytest.mark.parametrize(("size", "expected"), [((512, 256), (256, 128)), ((64, 32), (64, 32))])
def test_a_picture_is_shrunk_in_its_shape_and_never_enlarged(size, expected):
    assert shrunk(Image.new("RGBA", size), 256).size == expected


def test_a_picture_is_squared_with_its_own_backdrop():
    wide = Image.new("RGB", (200, 100), (90, 110, 130))
    wide.paste((250, 0, 0), (80, 30, 120, 70))
    found = np.asarray(squared(wide, 64))
    assert found.shape == (64, 64, 3)
    assert (found[[0, -1]] == (90, 110, 130)).all()
    assert found[32, 32].tolist() == [250, 0, 0]


def test_a_grey_catalogue_of_several_shapes_passes_its_own_audit(draw):
    grey = [draw(backdrop=(170, 170, 170), seed=i) for i in range(40)]
    wide = [picture if i % 2 else widened(picture) for i, picture in enumerate(grey)]
    fit = fit_for(picture.size for picture in wide)
    limits = calibrate([fit(picture, 96) for picture in wide[:30]])
    assert audit([fit(picture, 96) for picture in wide[30:]], limits).pass_rate == 1


def widened(picture: Image.Image) -> Image.Image:
    wide = Image.new("RGB", (96, 64), (170, 170, 170))
    wide.paste(picture, (16, 0))
    return wide


def test_a_huge_picture_is_shrunk_before_its_border_is_read(monkeypatch):
    seen = []
    monkeypatch.setattr(framing, "border_ring", lambda *size: seen.append(size) or border_ring(*size))
    picture = Image.new("RGB", (3000, 1500), (90, 110, 130))
    assert np.asarray(squared(picture, 64)).reshape(-1, 3).std(axis=0).max() == 0
    assert seen == [(32, 64)]
