import numpy as np
import pytest
import torch
from onbrand.evaluation.pixels import to_array, to_mask, to_pictures, to_pixels
from PIL import Image


def test_pil_pictures_and_their_pixels_are_the_same_gallery():
    values = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture) for picture in values]
    pixels = to_pixels(pictures)
    assert pixels.shape == (2, 3, 5, 7)
    np.testing.assert_array_equal(pixels * 255, values.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(to_pixels(torch.tensor(pixels)), pixels)
    assert [picture.tobytes() for picture in to_pictures(pixels)] == [p.tobytes() for p in pictures]
    assert [picture.tobytes() for picture in to_pictures(pictures)] == [p.tobytes() for p in pictures]


def test_half_precision_and_gradients_do_not_matter():
    pixels = torch.full((1, 3, 2, 2), 0.5, dtype=torch.bfloat16, requires_grad=True)
    np.testing.assert_array_equal(to_pixels(pixels), np.full((1, 3, 2, 2), 0.5))
    assert to_array(torch.ones(2, dtype=torch.bool)).dtype == np.float64


@pytest.mark.parametrize(
    ("gallery", "message"),
    [
        (np.zeros((3, 8, 8)), r"pixels must be of shape \(N, 3, H, W\), got \(3, 8, 8\)"),
        (np.zeros((2, 8, 8, 3)), r"pixels must be of shape \(N, 3, H, W\), got \(2, 8, 8, 3\)"),
        (np.zeros((2, 3, 0, 8)), r"pixels must be of shape \(N, 3, H, W\), got \(2, 3, 0, 8\)"),
        (np.full((1, 3, 2, 2), -1.0), r"pixels must be in \[0, 1\], got -1 to -1"),
        (torch.full((1, 3, 2, 2), 255), r"pixels must be in \[0, 1\], got 255 to 255"),
        (np.full((1, 3, 2, 2), np.nan), r"pixels must be in \[0, 1\], got nan to nan"),
        (np.zeros((0, 3, 2, 2)), "gallery must hold at least 1 picture, got 0"),
        ([], "gallery must hold at least 1 picture, got 0"),
        (["a"], "pictures must be PIL images, got str at position 0"),
    ],
)
def test_what_is_no_gallery_is_refused(gallery, message):
    for convert in (to_pixels, to_pictures):
        with pytest.raises(ValueError, match=f"^{message}$"):
            convert(gallery)


def test_pixels_need_pictures_of_one_size_and_pictures_do_not():
    mixed = [Image.new("RGB", (4, 6)), Image.new("RGB", (8, 8))]
    with pytest.raises(ValueError, match=r"^pictures must be of one size, got 4 x 6 and 8 x 8$"):
        to_pixels(mixed)
    assert [picture.size for picture in to_pictures(mixed)] == [(4, 6), (8, 8)]
    with pytest.raises(ValueError, match=r"^gallery must hold at least 2 pictures, got 1$"):
        to_pixels(mixed[:1], at_least=2)


def test_all_forms_of_a_mask_agree():
    expected = np.zeros((4, 6), dtype=bool)
    expected[1:3, 2:5] = True
    grey = Image.fromarray(np.where(expected, 128, 127).astype(np.uint8))
    forms = (expected, expected.astype(int), torch.tensor(expected), torch.tensor(expected).half())
    for mask in (grey, *forms):
        np.testing.assert_array_equal(to_mask(mask, (4, 6)), expected)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.eye(4), r"mask must be of the pictures' height and width \(4, 6\), got \(4, 4\)"),
        (Image.new("L", (4, 6)), r"mask must be of the pictures' height and width \(4, 6\), got \(6, 4\)"),
        (np.arange(24).reshape(4, 6), "mask must hold 0 and 1 only, got 0 to 23"),
        (np.ones((4, 6)), "mask must hold object and background, got only object"),
        (np.zeros((4, 6), dtype=bool), "mask must hold object and background, got only background"),
    ],
)
def test_what_is_no_mask_is_refused(mask, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        to_mask(mask, (4, 6))
