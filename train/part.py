"""A part of a catalogue as training and audits read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..configs.schema import DataConfig
from ..data.buckets import Buckets
from ..data.catalogue import Catalogue
from ..data.latents import LatentCache
from ..data.transform import ImageTransform
from .conditions import Conditions
from .text_cache import PooledText


@dataclass(frozen=True)
class Part:
    """The training or the held-out part of a catalogue: pictures, latents, sizes, conditions and texts."""

    catalogue: Catalogue
    cache: LatentCache
    buckets: Buckets
    condition: Conditions | None = None
    text_embeds: PooledText | None = None  # where the start distribution depends on text

    def __len__(self) -> int:
        return len(self.catalogue)

    def by_size(self, rows: Sequence[int], places: Sequence[int]) -> dict[tuple[int, int], list[int]]:
        """(height, width) in pixels -> the places i whose row rows[i] has that size."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i in places:
            groups.setdefault(size_of(self.buckets, rows[i]), []).append(i)
        return groups


def size_of(buckets: Buckets, row: int) -> tuple[int, int]:
    """Height and width in pixels that a picture is trained at."""
    return buckets.sizes[int(buckets.bucket_ids[row])]


def transform_of(config: DataConfig, size: tuple[int, int] | None = None) -> ImageTransform:
    """How pictures become training pixels, at a (height, width) or the base resolution."""
    height, width = size or (config.resolution, config.resolution)
    return ImageTransform(height, width, fit=config.fit, backdrop=config.backdrop)
