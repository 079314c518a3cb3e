"""One picture of a catalogue: where its pixels come from, and what the catalogue says about it."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from ..pca.rgb import to_rgb
from .decode import UnreadablePicture, decode_image

Source = Path | bytes | Image.Image | Callable[[], "Path | bytes | Image.Image | None"] | None
NO_PICTURE = "no picture"


@dataclass(frozen=True)
class Picture:
    """A picture under a caption, opened only when asked for.

    source: a file, its bytes, a Pillow image, or a function that returns one of them. recipe: what stands for
    the content of a picture that is drawn on demand; without one the content itself is hashed. row: pictures
    of one row are never separated. backdrop: what lies under transparent pixels. condition: the source of a
    second picture of the same scene, for a ControlNet. size: (height, width) in pixels, where it is known.
    """

    source: Source
    caption: str
    class_name: str = "product"
    row: int = 0
    origin: str = "picture"
    recipe: str = ""
    backdrop: str = "white"
    attributes: Mapping[str, str] = field(default_factory=dict)
    condition: Source = None
    size: tuple[int, int] | None = None

    def open(self) -> Image.Image:
        """The picture, upright RGB. Raises UnreadablePicture (a ValueError), which names its origin."""
        content = self._content()
        if isinstance(content, bytes):
            return decode_image(content, name=self.origin, backdrop=self.backdrop)
        return to_rgb(content, backdrop=self.backdrop)

    def open_condition(self) -> Image.Image:
        """The condition picture, upright RGB. Raises UnreadablePicture (a ValueError) as `open` does."""
        try:
            return replace(self, source=self.condition).open()
        except UnreadablePicture as error:
            reason = f"{error.reason} (condition picture)"
            lacking = error.reason == NO_PICTURE
            raise UnreadablePicture(self.origin, "no condition picture" if lacking else reason) from error

    def data(self) -> bytes:
        """The bytes that stand for the content: the recipe, else the file, else the pixels."""
        if self.recipe:
            return self.recipe.encode()
        content = self._content()
        if isinstance(content, bytes):
            return content
        image = to_rgb(content, backdrop=self.backdrop)
        return f"{image.width}x{image.height}".encode() + image.tobytes()

    def fingerprint(self) -> str:
        """sha256 of content and backdrop: equal fingerprints decode to equal pixels."""
        return hashlib.sha256(self.backdrop.encode() + b"\0" + self.data()).hexdigest()

    def _content(self) -> bytes | Image.Image:
        content = self.source() if callable(self.source) else self.source
        if content is None:
            raise UnreadablePicture(self.origin, NO_PICTURE)
        if isinstance(content, Path):
            if not content.is_file():
                raise UnreadablePicture(self.origin, "no such file")
            try:
                return content.read_bytes()
            except OSError as error:
                reason = f"a file that cannot be read ({error.strerror})"
                raise UnreadablePicture(self.origin, reason) from error
        return content
