"""Networks that look at pictures: SSCD and CLIP descriptors, CLIP score and PickScore."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .pixels import Gallery, to_pictures

SSCD_SIDE = 320
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 32


class Descriptor(Protocol):
    """Pictures to features: a gallery of N pictures to (N, D) float32 on the CPU, rows of length 1."""

    def __call__(self, gallery: Gallery) -> torch.Tensor: ...


@dataclass(frozen=True)
class SSCD:
    """A copy-detection descriptor; name: the file it came from, for the record of a result."""

    model: Any
    name: str
    device: str = "cpu"

    @torch.no_grad()
    def __call__(self, gallery: Gallery) -> torch.Tensor:
        """(N, D) float32, rows of length 1, of PIL pictures or (N, 3, H, W) in [0, 1].

        Raises ValueError on pictures as `to_pictures` rejects them, and on a model of another output.
        """
        size = (SSCD_SIDE, SSCD_SIDE)
        found = []
        for batch in _batches(to_pictures(gallery)):
            resized = [picture.resize(size, Image.Resampling.BILINEAR) for picture in batch]
            features = self.model(normalise(resized, mean=IMAGENET_MEAN, std=IMAGENET_STD).to(self.device))
            if not isinstance(features, torch.Tensor) or features.shape[:-1] != (len(batch),):
                shape = getattr(features, "shape", type(features).__name__)
                raise ValueError(f"SSCD model must return features of shape (N, D), got {shape}")
            found.append(F.normalize(features.float(), dim=1).cpu())
        return torch.cat(found)


def load_sscd(path: str | os.PathLike[str], *, device: str = "cpu") -> SSCD:
    """An SSCD descriptor from its torchscript file; pictures are stretched to 320 x 320 pixels.

    A torchscript file is a program: load only what you trust.
    Raises ValueError when there is no such file, or it is none.
    """
    if not Path(path).is_file():
        raise ValueError(f"SSCD model must be an existing torchscript file, got {str(path)!r}")
    try:
        model = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"SSCD model must be a torchscript file, got {str(path)!r}") from error
    return SSCD(model, name=Path(path).name, device=device)


@dataclass(frozen=True)
class CLIP:
    """A CLIP model, or one of its form, with all that its two inputs need; itself a descriptor."""

    model: Any
    tokenizer: Any
    name: str
    side: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @torch.no_grad()
    def __call__(self, gallery: Gallery) -> torch.Tensor:
        """Image features (N, D) float32, rows of length 1, of PIL pictures or (N, 3, H, W) in [0, 1]."""
        found = []
        for batch in _batches(to_pictures(gallery)):
            cropped = [centre_crop(picture, self.side) for picture in batch]
            pixels = normalise(cropped, mean=self.mean, std=self.std).to(self.model.device, self.model.dtype)
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            found.append(F.normalize(self.model.visual_projection(pooled).float(), dim=1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def of_text(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text features (N, D) float32, rows of length 1; what exceeds the model's length is cut off."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self.model.device)
        pooled = self.model.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=1).cpu()


def load_clip(
    path: str | os.PathLike[str], *, processor: str | os.PathLike[str] | None = None, device: str = "cpu"
) -> CLIP:
    """A CLIP model from a folder or a hub id, without torchvision.

    processor: where the tokenizer and the pictures' mean and deviation come from, when not from path, as
    for PickScore; a folder without a preprocessor_config.json has CLIP's own.
    Raises ValueError when there is no CLIP model, or no tokenizer of its vocabulary.
    """
    from transformers import AutoConfig, CLIPModel
    from transformers.image_processing_base import ImageProcessingMixin

    source = str(path if processor is None else processor)
    try:
        kind = AutoConfig.from_pretrained(str(path)).model_type
    except (OSError, ValueError) as error:
        raise ValueError(f"CLIP model must be a folder or a hub id, got {str(path)!r}: {error}") from error
    if kind != "clip":
        raise ValueError(f"CLIP model must be of type clip, got {kind!r} in {str(path)!r}")
    model = CLIPModel.from_pretrained(str(path)).to(device).eval()
    tokenizer, vocabulary = _load_tokenizer(source), model.config.text_config.vocab_size
    if len(tokenizer) != vocabulary:
        raise ValueError(
            f"processor must hold a CLIP tokenizer of {vocabulary} tokens, got {len(tokenizer)} in {source!r}"
        )
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        settings = {}
    return CLIP(
        model,
        tokenizer,
        name=str(path),
        side=model.config.vision_config.image_size,
        mean=tuple(settings.get("image_mean", CLIP_MEAN)),
        std=tuple(settings.get("image_std", CLIP_STD)),
    )


def _load_tokenizer(source: str) -> Any:
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"processor must be a folder or a hub id, got {source!r}: {error}") from error


def clip_score(gallery: Gallery, prompts: str | Sequence[str], clip: CLIP) -> torch.Tensor:
    """Cosine of each picture with its prompt (N,) float32, in [-1, 1].

    prompts: one for all pictures, or one a picture. 2.5 times this, where positive, is the form of the CLIP
    score that many papers print. Raises ValueError on as many prompts as there are not pictures.
    """
    pictures = to_pictures(gallery)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(prompts) not in (1, len(pictures)):
        raise ValueError(
            f"prompts must be one, or one a picture, got {len(prompts)} for {len(pictures)} pictures"
        )
    return (clip(pictures) * clip.of_text(prompts)).sum(dim=1)


def pick_score(gallery: Gallery, prompts: str | Sequence[str], clip: CLIP) -> torch.Tensor:
    """PickScore of each picture (N,) float32: the cosine at the scale the model learnt.

    clip: PickScore's weights, by `load_clip`; prompts and Raises as `clip_score`.
    """
    return clip_score(gallery, prompts, clip) * clip.model.logit_scale.detach().float().exp().cpu()


def centre_crop(picture: Image.Image, side: int) -> Image.Image:
    """The middle square of a picture whose shorter side is resized, bicubic, to side pixels."""
    shorter = min(picture.size)
    width, height = (int(side * length / shorter) for length in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return resized.crop((left, top, left + side, top + side))


def normalise(
    pictures: Sequence[Image.Image], *, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """RGB pictures of one size as (N, 3, H, W) float32, each channel less its mean, over its deviation."""
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    centre, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (pixels.float() / 255 - centre) / scale


def _batches(pictures: Sequence[Image.Image]) -> Iterator[Sequence[Image.Image]]:
    for start in range(0, len(pictures), BATCH):
        yield pictures[start : start + BATCH]
