"""Every kind of picture file becomes upright RGB, or an error that names it."""

import io

import numpy as np
import pytest
from onbrand.data.decode import UnreadablePicture, check_colour, decode_image, to_rgb
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def quadrants() -> Image.Image:
    """Red, green over blue, white: each corner tells where it ended up."""
    image = Image.new("RGB", (32, 16), "white")
    for colour, box in (("red", (0, 0, 16, 8)), ("lime", (16, 0, 32, 8)), ("blue", (0, 8, 16, 16))):
        image.paste(colour, box)
    return image


@pytest.mark.parametrize(
    ("orientation", "to_stored"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_exif_rotation_is_undone(orientation, to_stored):
    upright = quadrants()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if to_stored is None else upright.transpose(to_stored)
    assert np.array_equal(decode_image(encoded(stored, exif=exif)), upright)


@pytest.mark.parametrize("backdrop", ["white", "#336699"])
def test_transparency_lies_on_the_backdrop(backdrop):
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (200, 100, 0, alpha))
    under = np.array(check_colour(backdrop))
    for x, alpha in enumerate((0, 128, 255)):
        expected = under + (np.array((200, 100, 0)) - under) * alpha / 255
        pixel = np.array(decode_image(encoded(image), backdrop=backdrop).getpixel((x, 0)))
        assert np.abs(pixel - expected).max() <= 1


def test_grey_with_alpha_and_palette_with_transparency_lie_on_the_backdrop():
    grey = Image.new("LA", (2, 1), (80, 0))
    grey.putpixel((1, 0), (80, 255))
    assert np.asarray(decode_image(encoded(grey), backdrop="red"))[0].tolist() == [[255, 0, 0], [80, 80, 80]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    decoded = decode_image(encoded(palette, transparency=0), backdrop="blue")
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 255), (200, 100, 50)]
    keyed = decode_image(
        encoded(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)), backdrop="lime"
    )
    assert keyed.getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("L", (8, 8), 90), "PNG", (90, 90, 90)),
        (Image.new("1", (8, 8), 1), "PNG", (255, 255, 255)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG", (0, 0, 0)),
    ],
)
def test_grey_bilevel_and_cmyk_become_rgb(image, kind, expected):
    decoded = decode_image(encoded(image, kind))
    assert decoded.mode == "RGB"
    assert np.abs(np.array(decoded.getpixel((4, 4))) - expected).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    decoded = decode_image(encoded(Image.fromarray(values), kind))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_turns_nothing(kind):
    data = encoded(quadrants(), kind, exif=b"Exif\0\0" + bytes(20))
    decoded = decode_image(data)
    assert np.array_equal(decoded, Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(to_rgb(decoded), decoded)


def test_sixteen_bit_grey_is_rotated_too():
    values = np.array([[0, 65535]], dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3
    assert np.asarray(decode_image(encoded(Image.fromarray(values), exif=exif)))[0, :, 0].tolist() == [255, 0]


def damaged(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), kind)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"<html>not found</html>", "no known image format"),
        (damaged("JPEG")[:900], "a damaged or truncated image"),
        (damaged("PNG")[:900], "a damaged or truncated image"),
        (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "float pixels of unknown scale"),
    ],
)
def test_unusable_files_are_refused_by_name(data, reason):
    with pytest.raises(
        UnreadablePicture, match=rf"^picture shop\.csv:3 a\.jpg must be readable, got {reason}$"
    ) as error:
        decode_image(data, name="shop.csv:3 a.jpg")
    assert error.value.reason == reason
    assert isinstance(error.value, ValueError)


def test_oversized_pictures_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="got more pixels than are safe to open"):
        decode_image(encoded(quadrants()))


def test_float_images_are_refused():
    with pytest.raises(ValueError, match="picture pixels must be 8-bit or 16-bit, got mode 'F'"):
        to_rgb(Image.new("F", (4, 4)))


@pytest.mark.parametrize("colour", ["wihte", "", 7])
def test_unknown_backdrop(colour):
    with pytest.raises(ValueError, match=r"backdrop must be a colour such as 'white'.*got"):
        decode_image(encoded(quadrants()), backdrop=colour)
