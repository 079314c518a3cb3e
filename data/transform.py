"""Pictures -> training pixels: one resize, then a centre crop or padding."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..pca.rgb import check_colour, to_rgb

FITS = ("crop", "pad")


@dataclass(frozen=True)
class ImageTransform:
    """RGB pictures of any size -> (3, height, width) float32 pixels in [-1, 1].

    fit "crop": scaled until the shorter side (relative to the target) fits, the rest cut off evenly on both
    sides; "pad": scaled until the longer side fits, the rest filled with the backdrop colour. Resampling is
    Lanczos, antialiased; a picture of the target size passes unchanged.
    Raises ValueError on a height or width that is no positive multiple of 8, an unknown fit or backdrop.
    """

    height: int
    width: int
    fit: str = "crop"
    backdrop: str = "white"

    def __post_init__(self) -> None:
        for what, value in (("height", self.height), ("width", self.width)):
            if not isinstance(value, int) or value <= 0 or value % 8:
                raise ValueError(f"{what} must be a positive multiple of 8, got {value!r}")
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {FITS}, got {self.fit!r}")
        check_colour(self.backdrop)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(self.resize(image), dtype=np.float32) / 127.5 - 1
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def resize(self, image: Image.Image) -> Image.Image:
        """The picture at the target size, still 8-bit RGB."""
        image, size = to_rgb(image, backdrop=self.backdrop), (self.width, self.height)
        if self.fit == "crop":
            return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        return ImageOps.pad(image, size, Image.Resampling.LANCZOS, color=check_colour(self.backdrop))

    def to_dict(self) -> dict[str, Any]:
        """The transform as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ImageTransform":
        """The transform that `to_dict` described.

        Raises ValueError on unknown or missing keys.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"image transform keys must be among {known}, got {unknown}")
        if missing := sorted({"height", "width"} - set(values)):
            raise ValueError(f"image transform must have height and width, got none for {missing}")
        return cls(**values)
