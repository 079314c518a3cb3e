"""Picture files of every kind -> upright 8-bit RGB."""

import io

import numpy as np
from PIL import Image, ImageColor, ImageOps

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


def to_rgb(image: Image.Image, *, backdrop: str = "white") -> Image.Image:
    """Any Pillow image as upright RGB: EXIF rotation applied, transparency laid on the backdrop.

    image: any mode but float; 16-bit grey is scaled by 255/65535, not clipped. Returns mode RGB.
    Raises ValueError on float pixels (their scale is unknown) and on an unknown backdrop.
    """
    colour = check_colour(backdrop)
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("picture pixels must be 8-bit or 16-bit, got mode 'F'")
    if image.mode in SIXTEEN_BIT:
        # Pillow's own conversion clips at 255: everything but the darkest 0.4 % would turn white.
        grey = np.asarray(image).astype(np.float32).clip(0, 65535) / 257
        image = Image.fromarray(grey.round().astype(np.uint8))
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*colour, 255))
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image.convert("RGB")


def decode_image(data: bytes, *, name: str = "bytes", backdrop: str = "white") -> Image.Image:
    """The bytes of a picture file as upright RGB.

    name: what an error calls the picture (its file and row).
    Raises UnreadablePicture (a ValueError) on empty, unknown, damaged or truncated files.
    """
    check_colour(backdrop)
    if not data:
        raise UnreadablePicture(name, "an empty file")
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise UnreadablePicture(name, "more pixels than are safe to open") from None
    except Exception:
        raise UnreadablePicture(name, "no known image format") from None
    if image.mode == "F":
        raise UnreadablePicture(name, "float pixels of unknown scale")
    try:
        image.load()
        return to_rgb(image, backdrop=backdrop)
    except Exception as error:  # on damaged input Pillow's decoders raise almost anything
        raise UnreadablePicture(name, "a damaged or truncated image") from error


class UnreadablePicture(ValueError):
    """A picture that cannot be used; `.reason` is what the table of dropped pictures counts."""

    def __init__(self, name: str, reason: str, *, rule: str = "be readable") -> None:
        super().__init__(f"picture {name} must {rule}, got {reason}")
        self.reason = reason
