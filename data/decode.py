"""Picture files of every kind -> upright 8-bit RGB."""

import io

from PIL import Image

from ..pca.rgb import check_colour, to_rgb


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
