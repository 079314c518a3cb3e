"""Condition pictures for a ControlNet: a column of them, or the product cut out of its own picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..configs.schema import ControlNetConfig
from ..data.catalogue import Catalogue
from ..data.transform import ImageTransform
from ..evaluation.look.foreground import product_mask


@dataclass(frozen=True)
class Conditions:
    """The condition of each row of a catalogue, in the frame its picture is trained in.

    transforms: one a row. Masked products lie on black.
    """

    catalogue: Catalogue
    kind: str
    transforms: list[ImageTransform]

    def given(self, row: int) -> Image.Image:
        """The condition picture of a row as the catalogue has it; what is transparent of a mask is black."""
        if self.kind == "mask":
            return replace(self.catalogue.pictures[row], backdrop="black").open_condition()
        return self.catalogue.condition(row)

    def image(self, row: int) -> Image.Image:
        """The condition of a row as an RGB picture of the training size."""
        transform = self.transforms[row]
        if self.kind == "column":
            return transform.resize(self.given(row))
        picture = transform.resize(self.catalogue.image(row))
        if self.kind == "mask":
            bars = replace(transform, backdrop="black")  # what is added to the frame is no product
            mask = bars.resize(self.given(row)).convert("L")
        else:
            mask = product_mask(picture)
        return Image.composite(picture, Image.new("RGB", picture.size), mask)

    def __call__(self, row: int) -> Tensor:
        """The condition of a row, (3, height, width) float32 in [0, 1]."""
        pixels = np.asarray(self.image(row), dtype=np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def conditions_of(
    catalogue: Catalogue, config: ControlNetConfig | None, transforms: list[ImageTransform]
) -> Conditions | None:
    """The conditions that a config asks for, None without a ControlNet."""
    return None if config is None else Conditions(catalogue, config.condition, transforms)
