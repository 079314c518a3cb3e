"""Do pictures show what their captions say: scores by a named scorer, against those of real pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from .similarity import CLIP

Scorer = Callable[[Sequence[Image.Image], Sequence[str]], Any]  # one number a picture, higher is better


def clip_agreement(clip: CLIP) -> Scorer:
    """A scorer: the cosine of picture and caption by a CLIP model, see `load_clip`."""
    from .similarity import clip_score

    def score(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Any:
        return clip_score(pictures, captions, clip)

    score.__name__ = f"CLIP score by {clip.name}"
    return score


@dataclass(frozen=True)
class TextAgreement:
    """Mean score of pictures with their captions, its standard error, and its ratio to the catalogue's.

    reference: the mean of the catalogue's own pictures; it and ratio are None where those were not scored,
    ratio also where that mean is not above 0, and a ratio to it means nothing.
    """

    scorer: str
    mean: float
    standard_error: float
    n: int
    reference: float | None
    ratio: float | None

    @classmethod
    def of(cls, scores: Sequence[float], *, scorer: str, known: Mapping[str, Any] | None) -> TextAgreement:
        """Of one score a picture; known: `Limits.text`, the catalogue's own."""
        n, mean = len(scores), math.fsum(scores) / len(scores)
        variance = math.fsum((score - mean) ** 2 for score in scores) / max(1, n - 1)
        reference = None if known is None else known["mean"]
        ratio = mean / reference if reference and reference > 0 else None
        return cls(scorer, mean, math.sqrt(variance / n), n, reference, ratio)

    def __str__(self) -> str:
        if self.ratio is None:
            return f"by {self.scorer}"
        return f"{self.ratio:.2f} of the catalogue's own {self.reference:.3f}, by {self.scorer}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)
