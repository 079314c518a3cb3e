"""Condition pictures lie on their pictures: same frame, same size, black outside the product."""

import numpy as np
import pytest
import torch
from onbrand.configs.schema import ControlNetConfig
from onbrand.data import Catalogue, ImageTransform, Picture
from onbrand.train.conditions import Conditions, conditions_of
from PIL import Image

GREY, RED = (240, 240, 240), (200, 30, 30)


def picture(height: int, width: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A red product on a light backdrop; box: top, bottom, left, right."""
    pixels = np.full((height, width, 3), GREY, dtype=np.uint8)
    pixels[box[0] : box[1], box[2] : box[3]] = RED
    return Image.fromarray(pixels)


def mask(height: int, width: int, box: tuple[int, int, int, int]) -> Image.Image:
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[box[0] : box[1], box[2] : box[3]] = 255
    return Image.fromarray(pixels)


def conditions(
    kind: str,
    image: Image.Image,
    condition: Image.Image | None = None,
    *,
    size: tuple[int, int] | None = None,
    fit: str = "crop",
) -> Conditions:
    """Of one picture, in its own frame or another."""
    height, width = size or image.size[::-1]
    transform = ImageTransform(height, width, fit=fit, backdrop="white")
    return Conditions(Catalogue([Picture(image, "a mug", condition=condition)]), kind, [transform])


BOX = (8, 24, 16, 40)


def inside(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    return np.asarray(mask(height, width, box)) > 0


def test_a_masked_product_lies_on_black() -> None:
    image = picture(32, 48, BOX)
    shown = np.asarray(conditions("mask", image, mask(32, 48, BOX)).image(0))
    where = inside(32, 48, BOX)
    assert (shown[where] == RED).all()
    assert (shown[~where] == 0).all()


def test_what_is_transparent_of_a_mask_is_no_product() -> None:
    alpha = mask(32, 48, BOX)
    cut_out = Image.merge("LA", [Image.new("L", alpha.size, 255), alpha])
    shown = np.asarray(conditions("mask", picture(32, 48, BOX), cut_out).image(0))
    where = inside(32, 48, BOX)
    assert (shown[where] == RED).all()
    assert (shown[~where] == 0).all()


def test_a_mask_keeps_what_it_says_not_what_stands_out() -> None:
    """The mask covers backdrop and half of the product."""
    box = (0, 16, 0, 24)
    image = picture(32, 48, BOX)
    shown = np.asarray(conditions("mask", image, mask(32, 48, box)).image(0))
    where = inside(32, 48, box)
    assert np.array_equal(shown[where], np.asarray(image)[where])
    assert not shown[~where].any()


def test_a_segmented_product_lies_on_black() -> None:
    image = picture(32, 48, BOX)
    shown = np.asarray(conditions("segment", image).image(0))
    where = inside(32, 48, BOX)
    assert (shown[where] == RED).all()
    assert (shown[~where] == 0).all()


def test_a_picture_without_a_product_is_black() -> None:
    assert not np.asarray(conditions("segment", picture(32, 32, (0, 0, 0, 0))).image(0)).any()


def test_a_column_is_given_as_it_is() -> None:
    edges = Image.fromarray(np.arange(32 * 48 * 3, dtype=np.uint32).reshape(32, 48, 3).astype(np.uint8))
    shown = conditions("column", picture(32, 48, BOX), edges).image(0)
    assert np.array_equal(np.asarray(shown), np.asarray(edges))


@pytest.mark.parametrize("kind", ["column", "mask", "segment"])
def test_a_condition_is_a_tensor_in_0_1(kind: str) -> None:
    condition = conditions(kind, picture(32, 48, BOX), mask(32, 48, BOX))
    pixels = condition(0)
    assert pixels.shape == (3, 32, 48)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    expected = torch.from_numpy(np.array(condition.image(0))).permute(2, 0, 1) / 255
    assert torch.equal(pixels, expected)
    assert pixels.min() == 0
    assert pixels.max() == (1 if kind == "column" else pytest.approx(200 / 255))


def red(image: np.ndarray) -> np.ndarray:
    """Where a picture is nearer to the product's colour than to any backdrop."""
    return np.abs(image.astype(int) - RED).sum(-1) < 150


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("kind", ["column", "mask", "segment"])
def test_in_another_frame_a_condition_lies_on_its_picture(kind: str, fit: str) -> None:
    """A landscape picture of 60 x 100 in a portrait bucket, its condition stored at half the size."""
    box = (16, 44, 30, 70)
    image = picture(60, 100, box)
    half = mask(60, 100, box).resize((50, 30), Image.Resampling.BOX)
    condition = conditions(kind, image, half, size=(64, 48), fit=fit)
    trained = np.asarray(condition.transforms[0].resize(image))
    shown = np.asarray(condition.image(0))
    assert shown.shape == (64, 48, 3)
    product = red(trained)
    assert product.sum() > 100
    if kind == "column":  # a padded column is padded in the backdrop's colour, as the picture is
        band = (trained == 255).all(-1) if fit == "pad" else np.zeros_like(product)
        assert ((shown.mean(-1) > 127) == (product | band)).mean() > 0.97
    else:
        assert (red(shown) == product).mean() > 0.97


@pytest.mark.parametrize("kind", ["mask", "segment"])
def test_padding_is_black_as_all_that_is_no_product(kind: str) -> None:
    image = picture(32, 64, (8, 24, 16, 48))
    condition = conditions(kind, image, mask(32, 64, (8, 24, 16, 48)), size=(64, 64), fit="pad")
    shown = np.asarray(condition.image(0))
    assert red(shown).sum() > 300
    assert not shown[:12].any()
    assert not shown[-12:].any()


def test_rows_have_the_sizes_of_their_buckets() -> None:
    pictures = [Picture(picture(32, 48, BOX), "a mug"), Picture(picture(48, 32, (16, 40, 8, 24)), "a bag")]
    transforms = [ImageTransform(32, 48), ImageTransform(48, 32)]
    condition = Conditions(Catalogue(pictures), "segment", transforms)
    assert [tuple(condition(row).shape) for row in range(2)] == [(3, 32, 48), (3, 48, 32)]


def test_only_a_controlnet_has_conditions() -> None:
    catalogue, transforms = Catalogue([Picture(picture(32, 48, BOX), "a mug")]), [ImageTransform(32, 48)]
    assert conditions_of(catalogue, None, transforms) is None
    made = conditions_of(catalogue, ControlNetConfig(condition="segment"), transforms)
    assert (made.kind, made.catalogue, made.transforms) == ("segment", catalogue, transforms)


@pytest.mark.parametrize("kind", ["column", "mask"])
def test_a_picture_without_its_condition_is_named(kind: str) -> None:
    with pytest.raises(ValueError, match="picture must be readable, got no condition picture"):
        conditions(kind, picture(32, 48, BOX)).image(0)
