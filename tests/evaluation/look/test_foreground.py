import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand import pca
from onbrand.evaluation.look.foreground import MEASURES, border_ring, foreground_mask, look, measure, to_rgb
from PIL import Image, ImageDraw
from skimage.color import deltaE_ciede2000, rgb2lab

RED = (190, 50, 40)


def rectangle(box: tuple[int, int, int, int], *, size: tuple[int, int] = (64, 64), backdrop: str = "white"):
    """box: left, top, right, bottom in pixels, right and bottom excluded."""
    image = Image.new("RGB", size, backdrop)
    image.paste(RED, box)
    return image


def lab_of(colour: tuple[int, int, int]) -> np.ndarray:
    return rgb2lab(np.array([[colour]], dtype=np.float64) / 255)[0, 0]


def test_a_rectangle_measures_what_it_is():
    values = measure(rectangle((8, 16, 56, 40)))
    assert tuple(values) == MEASURES
    assert values["background_l"] == pytest.approx(100, abs=1e-3)
    assert values["background_a"] == pytest.approx(0, abs=0.01)
    assert values["uniformity"] == pytest.approx(0, abs=1e-3)
    assert values["frame_contact"] == 0
    assert values["offset_x"] == 0
    assert values["offset_y"] == (16 + 40) / 128 - 0.5
    assert values["extent"] == 48 / 64
    assert values["area"] == 48 * 24 / 64**2
    assert values["lightness"] == pytest.approx(lab_of(RED)[0], abs=1e-3)
    assert values["contrast"] == pytest.approx(0, abs=1e-3)


def test_frame_contact_is_the_share_of_the_outermost_line():
    assert measure(rectangle((0, 16, 32, 48)))["frame_contact"] == 32 / (4 * 63)


def test_extent_is_relative_to_the_side_it_runs_along():
    assert measure(rectangle((20, 25, 100, 55), size=(200, 80)))["extent"] == 80 / 200
    assert measure(rectangle((20, 10, 100, 70), size=(200, 80)))["extent"] == 60 / 80


@settings(max_examples=25, deadline=None)
@given(left=st.integers(0, 40), top=st.integers(0, 40), width=st.integers(6, 20), height=st.integers(6, 20))
def test_a_mirrored_picture_mirrors_its_offset_and_nothing_else(left, top, width, height):
    image = rectangle((left, top, left + width, top + height))
    values, mirrored = measure(image), measure(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert mirrored.pop("offset_x") == pytest.approx(-values.pop("offset_x"))
    assert mirrored.pop("light_slope") == pytest.approx(-values.pop("light_slope"), nan_ok=True, abs=1e-6)
    assert mirrored == pytest.approx(values, abs=1e-4, nan_ok=True)


def test_no_product_has_no_size_no_place_and_no_light():
    values = measure(Image.new("RGB", (64, 64), "white"))
    assert values["extent"] == values["area"] == values["frame_contact"] == 0
    assert all(math.isnan(values[name]) for name in ("offset_x", "offset_y", "lightness", "contrast"))


def test_the_soft_shadow_moves_the_box_by_less_than_the_floor(draw):
    # drawn with and without a shadow under it: colour None draws neither
    shadowed = measure(draw(noise=0))
    bare = Image.new("RGB", (256, 256), (250, 250, 250))
    ImageDraw.Draw(bare).ellipse([51.2, 64, 204.8, 192], fill=RED)
    plain = measure(bare.resize((64, 64), Image.Resampling.BOX))
    for name in ("offset_x", "offset_y", "extent", "area"):
        assert abs(shadowed[name] - plain[name]) < 0.02


def test_specks_are_no_product_but_like_parts_are():
    distance = np.zeros((64, 64))
    distance[10:20, 10:20] = 40
    distance[10:20, 40:50] = 40
    distance[50, 50] = 40
    mask = foreground_mask(distance)
    assert mask[15, 15]
    assert mask[15, 45]
    assert not mask[50, 50]
    assert mask.sum() == 200


def test_a_hole_in_the_product_belongs_to_it():
    distance = np.zeros((64, 64))
    distance[10:30, 10:30] = 40
    distance[15:25, 15:25] = 0
    assert foreground_mask(distance).sum() == 400


def test_the_ring_is_6_percent_wide_and_at_least_2_pixels():
    assert border_ring(64, 100).sum() == 64 * 100 - 56 * 92
    assert border_ring(16, 16).sum() == 16 * 16 - 12 * 12


def test_uniformity_does_not_count_a_product_that_reaches_the_frame():
    assert measure(rectangle((0, 16, 32, 48)))["uniformity"] == pytest.approx(0, abs=1e-3)


def test_uniformity_counts_the_whole_ring_when_too_much_of_it_differs():
    half = rectangle((0, 0, 30, 64))
    step = deltaE_ciede2000(lab_of(RED), lab_of((255, 255, 255)))
    assert measure(half)["uniformity"] == pytest.approx(step, rel=1e-3)


def test_uniformity_is_the_delta_e_of_a_gentle_gradient():
    columns = np.linspace(0, 1, 64)
    pixels = np.repeat((235 + 20 * columns)[None, :, None], 64, axis=0).repeat(3, axis=2).round()
    image = Image.fromarray(pixels.astype(np.uint8))
    middle, end = lab_of((245, 245, 245)), lab_of((235, 235, 235))
    assert measure(image)["uniformity"] == pytest.approx(deltaE_ciede2000(middle, end), rel=0.15)


def test_large_and_small_pictures_measure_alike():
    image = Image.new("RGB", (1024, 1024), "white")
    ImageDraw.Draw(image).ellipse((200, 300, 700, 800), fill=RED)
    large, small = measure(image), measure(image.resize((64, 64), Image.Resampling.BOX))
    for name in ("offset_x", "offset_y", "extent", "area"):
        assert large[name] == pytest.approx(small[name], abs=0.02)
    assert large["lightness"] == pytest.approx(small["lightness"], abs=3)


def test_every_mode_becomes_rgb():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    keyed = Image.new("RGB", (8, 8), (1, 2, 3))
    keyed.info["transparency"] = (1, 2, 3)
    assert to_rgb(keyed).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16))
    assert to_rgb(deep).getpixel((0, 0)) == (128, 128, 128)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([9, 8, 7] * 256)
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("L", (8, 8), 77)).getpixel((0, 0)) == (77, 77, 77)
    assert to_rgb(Image.new("CMYK", (8, 8), 0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((7, 64), "image must be at least 8 x 8 pixels, got 7 x 64"),
        ((8, 4000), "image must be at most 32 times as long as wide, got 8 x 4000"),
    ],
)
def test_pictures_too_small_or_too_long_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        measure(Image.new("RGB", size))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "I", "I;16"]
)
def test_a_picture_of_every_mode_shows_the_same_product(mode):
    plain = Image.new("RGB", (64, 64), "white")
    plain.paste("black", (20, 16, 44, 50))
    if mode in ("I", "I;16"):
        grey = np.asarray(plain.convert("L")).astype(np.int32) * 257
        picture = Image.fromarray(grey if mode == "I" else grey.astype(np.uint16))
    else:
        before = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
        picture = (plain.convert(before) if before else plain).convert(mode)
    assert picture.mode == mode
    assert to_rgb(picture).mode == "RGB"
    assert np.array_equal(to_rgb(picture), pca.rgb.to_rgb(picture))
    assert look(picture).values == pytest.approx(look(plain).values, abs=1e-3, nan_ok=True)


def test_float_pixels_are_refused():
    with pytest.raises(ValueError, match="picture pixels must be 8-bit or 16-bit, got mode 'F'"):
        look(Image.new("F", (64, 64)))
