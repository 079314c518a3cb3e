"""One resize, then crop or pad: sizes, range, centring, what is kept."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.data.transform import ImageTransform
from PIL import Image


def noise_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    target=st.tuples(st.sampled_from((8, 24, 40)), st.sampled_from((8, 24, 40))),
    fit=st.sampled_from(("crop", "pad")),
)
def test_any_size_becomes_the_target(width, height, target, fit):
    pixels = ImageTransform(*target, fit=fit)(noise_image(width, height))
    assert pixels.shape == (3, *target)
    assert pixels.dtype == torch.float32
    assert -1 <= pixels.min() <= pixels.max() <= 1


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_picture_of_the_target_size_is_unchanged(fit):
    image = noise_image(40, 24)
    pixels = ImageTransform(24, 40, fit=fit)(image)
    assert np.array_equal(((pixels.permute(1, 2, 0) + 1) * 127.5).round().numpy(), np.array(image))


def test_crop_keeps_the_middle():
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (16, 0, 48, 32))
    assert ImageTransform(32, 32).resize(image).getcolors() == [(1024, (0, 0, 255))]
    assert ImageTransform(32, 32).resize(image.rotate(90, expand=True)).getcolors() == [(1024, (0, 0, 255))]


def test_pad_keeps_everything_on_the_backdrop():
    padded = np.asarray(
        ImageTransform(32, 32, fit="pad", backdrop="lime").resize(Image.new("RGB", (64, 32), "red"))
    )
    assert (padded[8:24] == (255, 0, 0)).all()
    assert (padded[:8] == (0, 255, 0)).all()
    assert (padded[24:] == (0, 255, 0)).all()


def test_downscaling_is_antialiased():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(ImageTransform(8, 8).resize(Image.fromarray(stripes))).astype(int)
    assert np.abs(small[:, 1:-1] - 127.5).max() < 8


def test_transparent_pictures_lie_on_the_backdrop():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (ImageTransform(8, 8, backdrop="white")(clear) == 1).all()
    assert (ImageTransform(8, 8, backdrop="black")(clear) == -1).all()


def test_dict_round_trip():
    transform = ImageTransform(64, 48, fit="pad", backdrop="#eeeeee")
    assert transform.to_dict() == {"height": 64, "width": 48, "fit": "pad", "backdrop": "#eeeeee"}
    assert ImageTransform.from_dict(transform.to_dict()) == transform


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 60, "width": 64}, "height must be a positive multiple of 8, got 60"),
        ({"height": 64, "width": 0}, "width must be a positive multiple of 8, got 0"),
        ({"height": 64, "width": -8}, "width must be a positive multiple of 8, got -8"),
        ({"height": 64.0, "width": 64}, "height must be a positive multiple of 8, got 64.0"),
        (
            {"height": 64, "width": 64, "fit": "stretch"},
            r"fit must be one of \('crop', 'pad'\), got 'stretch'",
        ),
        ({"height": 64, "width": 64, "backdrop": "wihte"}, "backdrop must be a colour .* got 'wihte'"),
        ({"height": 64, "width": 64, "mirror": 1}, "image transform keys must be among .* got .'mirror'."),
        ({"height": 64}, "image transform must have height and width, got none for .'width'."),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform.from_dict(values)
