"""Object detectors of transformers, DETR's and YOLOS's form among them, without torchvision."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .detection import Box, Detection
from .look.foreground import to_rgb
from .similarity import IMAGENET_MEAN, IMAGENET_STD, normalise

SHORTEST, LONGEST = 800, 1333


@dataclass(frozen=True)
class HubDetector:
    """A detector: a model of transformers and how pictures are prepared for it.

    labels: all that it can find; size: as in preprocessor_config.json, see `resized`; min_score: less sure
    detections are left out. One picture at a time goes through the model, at its own proportions.
    """

    model: Any
    labels: tuple[str, ...]
    size: Mapping[str, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    min_score: float = 0.5

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[list[Detection]]:
        """The detections of each picture, the surest first."""
        return [self._of(to_rgb(picture)) for picture in pictures]

    def _of(self, picture: Image.Image) -> list[Detection]:
        multiple = self.model.config.patch_size if self.model.config.model_type == "yolos" else 1
        small = picture.resize(resized(picture.size, self.size, multiple=multiple), Image.Resampling.BILINEAR)
        pixels = normalise([small], mean=self.mean, std=self.std)
        output = self.model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        scores, kinds = _scores(output.logits[0].float().cpu(), len(self.labels))
        return [
            Detection(self.labels[int(kinds[i])], box, float(scores[i]))
            for i in scores.argsort(descending=True).tolist()
            if scores[i] >= self.min_score and (box := _corners(output.pred_boxes[0, i])) is not None
        ]


def load_detector(
    path: str | os.PathLike[str], *, min_score: float = 0.5, device: str = "cpu"
) -> HubDetector:
    """A detector from a folder or a hub id of transformers' object detection models.

    Raises ValueError when there is none, or no preprocessor_config.json beside it, or a size of another kind.
    """
    from transformers import AutoModelForObjectDetection
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        model = AutoModelForObjectDetection.from_pretrained(str(path)).to(device).eval()
        stored, _ = ImageProcessingMixin.get_image_processor_dict(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(
            "detector must be an object detection model of transformers with its preprocessor_config.json, "
            f"got {str(path)!r}: {error}"
        ) from error
    names = model.config.id2label
    size = _size_of(stored)
    resized((1, 1), size)
    return HubDetector(
        model,
        tuple(names[i] for i in range(len(names))),
        size,
        tuple(stored.get("image_mean") or IMAGENET_MEAN),
        tuple(stored.get("image_std") or IMAGENET_STD),
        min_score,
    )


def resized(size: tuple[int, int], wanted: Mapping[str, int], *, multiple: int = 1) -> tuple[int, int]:
    """Width and height that a picture of this width and height is brought to.

    wanted: height and width, or shortest_edge and the longest_edge that the picture may then have, its
    proportions kept; multiple: of both, rounded down.
    Raises ValueError on other keys.
    """
    width, height = size
    if {"height", "width"} <= set(wanted):
        return wanted["width"], wanted["height"]
    if "shortest_edge" not in wanted:
        raise ValueError(
            f"size of a detector's pictures must have height and width, or shortest_edge, got {dict(wanted)}"
        )
    short, long = min(size), max(size)
    side = float(wanted["shortest_edge"])
    limit = wanted.get("longest_edge")
    if limit is not None and long / short * side > limit:
        side = limit * short / long
    rounded = round(side)
    other = rounded if short == long else int(side * long / short)
    across, down = (rounded, other) if width < height else (other, rounded)
    return max(multiple, across - across % multiple), max(multiple, down - down % multiple)


def _size_of(stored: Mapping[str, Any]) -> dict[str, int]:
    """The size that pictures are brought to; old files hold a number, with the longest edge beside it."""
    size = stored.get("size") or {"shortest_edge": SHORTEST, "longest_edge": LONGEST}
    if isinstance(size, int):
        return {"shortest_edge": size, "longest_edge": stored.get("max_size", LONGEST)}
    return {name: value for name, value in size.items() if value is not None}


def _scores(logits: Tensor, labels: int) -> tuple[Tensor, Tensor]:
    """Score and label of each query, (queries,) both, of logits (queries, labels), or with one for nothing.

    With a logit for nothing they compete by softmax; without one each label has its own probability.
    """
    probabilities = logits.softmax(-1)[:, :labels] if logits.shape[-1] > labels else logits.sigmoid()
    found = probabilities.max(-1)
    return found.values, found.indices


def _corners(box: Tensor) -> Box | None:
    """x0, y0, x1, y1 within the picture, of a box given by centre and size; None if none is there."""
    x, y, width, height = box.tolist()
    x0, y0, x1, y1 = (
        min(max(edge, 0.0), 1.0) for edge in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    )
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
