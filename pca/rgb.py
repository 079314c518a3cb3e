"""Any picture as upright 8-bit RGB, read alike for training and for drawing."""

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps

SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def check_colour(colour: str) -> tuple[int, int, int]:
    """RGB bytes of a colour written as a CSS name, #rrggbb or rgb(r, g, b).

    Raises ValueError on anything Pillow's ImageColor does not read.
    """
    try:
        return ImageColor.getrgb(colour)[:3]
    except (ValueError, AttributeError, TypeError):
        raise ValueError(
            f"backdrop must be a colour such as 'white', '#f4f4f4' or 'rgb(244, 244, 244)', got {colour!r}"
        ) from None


def orientation(image: Image.Image) -> int:
    """EXIF's number for how the picture is to be turned; 1, not at all, where it says none or is damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # on damaged blocks Pillow raises almost anything
        return 1


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF block says."""
    image.load()
    return image if orientation(image) == 1 else ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image, *, backdrop: str = "white") -> Image.Image:
    """Any Pillow image as upright RGB: EXIF rotation applied, transparency laid on the backdrop.

    image: any mode but float; 16-bit grey is scaled by 255/65535, not clipped. Returns mode RGB.
    Raises ValueError on float pixels (their scale is unknown) and on an unknown backdrop.
    """
    colour = check_colour(backdrop)
    if image.mode == "F":
        raise ValueError("picture pixels must be 8-bit or 16-bit, got mode 'F'")
    image = upright(image)
    if image.mode in SIXTEEN_BIT:
        # Pillow's own conversion clips at 255: everything but the darkest 0.4 % would turn white.
        grey = np.asarray(image).astype(np.float32).clip(0, 65535) / 257
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        canvas = Image.new("RGBA", image.size, (*colour, 255))
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image.convert("RGB")
