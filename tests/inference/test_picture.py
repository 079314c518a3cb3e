"""A chosen picture, fitted to the frame and encoded."""

import copy

import numpy as np
import pytest
import torch
from onbrand.data.transform import ImageTransform
from onbrand.inference.picture import encode_pictures, fit_to_frame
from onbrand.pca import encode_mean
from PIL import Image


def two_tone(width=40, height=20):
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def test_a_picture_of_the_right_size_is_unchanged():
    image = two_tone(32, 16)
    assert fit_to_frame(image, 16, 32).tobytes() == image.tobytes()


def test_the_centre_is_kept_by_crop_and_the_whole_by_pad():
    image = Image.new("RGB", (40, 20), "green")
    image.paste("red", (0, 0, 5, 20))
    cropped = fit_to_frame(image, 20, 20)
    assert cropped.getpixel((0, 10)) == (0, 128, 0)
    padded = fit_to_frame(image, 20, 40, fit="pad", backdrop="blue")
    assert padded.getpixel((0, 10)) == (255, 0, 0)
    assert fit_to_frame(image, 40, 40, fit="pad", backdrop="blue").getpixel((20, 2)) == (0, 0, 255)


def test_transparency_shows_the_backdrop_and_exif_turns():
    assert fit_to_frame(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), 8, 8).getpixel((4, 4)) == (255, 255, 255)
    turned = two_tone(20, 20)
    turned.getexif()[0x0112] = 3  # upside down
    assert fit_to_frame(turned, 20, 20).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_picture_is_read_as_training_reads_it(fit):
    depth = Image.fromarray(np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16))
    clear = two_tone().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    damaged = two_tone()
    damaged.info["exif"] = b"Exif\0\0" + bytes(20)
    for image in (depth, clear, damaged):
        trained = ImageTransform(32, 32, fit=fit, backdrop="#204060").resize(image)
        assert np.array_equal(fit_to_frame(image, 32, 32, fit=fit, backdrop="#204060"), trained)
    assert 100 < np.mean(fit_to_frame(depth, 24, 40)) < 155  # not clipped to white
    with pytest.raises(ValueError, match="picture pixels must be 8-bit or 16-bit, got mode 'F'"):
        fit_to_frame(Image.new("F", (8, 8)), 8, 8)


@pytest.mark.parametrize("transform", [None, {"fit": "crop", "backdrop": "white", "height": 64, "width": 64}])
def test_latents_are_the_vaes_scaled_mean(tiny, transform):
    vae = tiny.make_vae()
    image = two_tone(32, 32)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    latents = encode_pictures([image, image], vae, height=32, width=32, transform=transform)
    assert latents.shape == (2, *tiny.LATENT_SHAPE)
    torch.testing.assert_close(latents[1:], encode_mean(vae, pixels), atol=1e-5, rtol=1e-5)


def test_a_vae_that_asks_for_it_encodes_in_float32(tiny):
    half = tiny.make_vae(force_upcast=True).half()
    rounded = copy.deepcopy(half).float()
    latents = encode_pictures(two_tone(32, 32), half, height=32, width=32)
    assert torch.equal(latents, encode_pictures(two_tone(32, 32), rounded, height=32, width=32))
    assert half.dtype == torch.float16
    plain = tiny.make_vae(force_upcast=False).half()
    assert not torch.equal(encode_pictures(two_tone(32, 32), plain, height=32, width=32), latents)
