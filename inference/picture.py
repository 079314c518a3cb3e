"""A chosen picture as the start: fitted to the frame as the catalogue was, then encoded by the VAE."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from torch import Tensor

from ..pca.fingerprint import encode_mean
from ..pca.rgb import check_colour, to_rgb


def fit_to_frame(
    image: Image.Image, height: int, width: int, *, fit: str = "crop", backdrop: str = "white"
) -> Image.Image:
    """The picture at exactly this size, upright, opaque, its centre cropped or its surroundings padded.

    Raises ValueError on float pixels and on an unknown backdrop.
    """
    image = to_rgb(image, backdrop=backdrop)
    if fit == "pad":
        colour = check_colour(backdrop)
        return ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, color=colour)
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def encode_pictures(
    images: Image.Image | list[Image.Image],
    vae: Any,
    *,
    height: int,
    width: int,
    transform: Mapping[str, Any] | None = None,
) -> Tensor:
    """Scaled latents (B, C, h, w), float32 on the CPU, of pictures fitted to height x width pixels.

    transform: how the catalogue was fitted ("fit", "backdrop"); a centre crop if None.
    A VAE in float16 encodes in float32 where its config asks for it, as SDXL's overflows.
    """
    how = {key: value for key, value in (transform or {}).items() if key in ("fit", "backdrop")}
    images = images if isinstance(images, list) else [images]
    fitted = [fit_to_frame(image, height, width, **how) for image in images]
    pixels: Tensor = VaeImageProcessor(do_resize=False).preprocess(fitted)
    with precise(vae):
        return torch.cat([encode_mean(vae, p[None]) for p in pixels]).cpu()


@contextmanager
def precise(vae: Any, *, always: bool = False) -> Iterator[None]:
    """The VAE in float32 for the length of the block, if its float16 overflows as SDXL's does, or always."""
    dtype = vae.dtype
    wanted = dtype != torch.float32 if always else dtype == torch.float16 and vae.config.force_upcast
    try:
        # there and back without loss; a copy would take along what the hooks of an offloaded VAE point to
        if wanted:
            vae.to(torch.float32)
        yield
    finally:
        if wanted:
            vae.to(dtype)
