"""How large a pipeline draws unless it is told otherwise."""

from typing import Any


def picture_size(pipeline: Any, height: int | None = None, width: int | None = None) -> tuple[int, int]:
    """Height and width in pixels, by default the first of the pipeline's own."""
    own = own_sizes(pipeline)[0]
    return height or own[0], width or own[1]


def own_sizes(pipeline: Any) -> list[tuple[int, int]]:
    """Heights and widths in pixels of the start distribution's buckets, of the UNet alone without one."""
    start, factor = getattr(pipeline, "start_distribution", None), scale_factor(pipeline)
    side = pipeline.unet.config.sample_size
    sides = [(side, side) if isinstance(side, int) else side] if start is None else start.sizes
    return [(h * factor, w * factor) for h, w in sides]


def scale_factor(pipeline: Any) -> int:
    """Pixels a side of one latent, 1 for a model without VAE."""
    return 1 if getattr(pipeline, "vae", None) is None else pipeline.vae_scale_factor
