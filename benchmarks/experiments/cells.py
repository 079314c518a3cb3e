"""The cells of every table: which training is drawn from where, with which sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .starts import STARTS
from .trainings import TRAININGS

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Cell:
    """One training drawn from one start, by DDIM with 20 steps and guidance 2 unless said otherwise.

    start: of STARTS; `another's mean` is the next class's, `ground truth` a real picture of the very product.
    """

    training: str
    start: str
    seed: int = 0
    scheduler: str = "DDIMScheduler"
    steps: int = 20
    guidance_scale: float = 2.0

    @property
    def name(self) -> str:
        """What its line of results goes by."""
        usual = Cell(self.training, self.start, self.seed)
        parts = [self.training, self.start, str(self.seed)]
        if self != usual:
            parts.append(f"{self.scheduler} {self.steps} {self.guidance_scale:g}")
        return " / ".join(parts)

    @classmethod
    def named(cls, name: str) -> Cell:
        """The inverse of `name`; Raises ValueError on a training or start that there is not."""
        match name.split(" / "):
            case [training, start, seed] if training in TRAININGS and start in STARTS and seed.isdigit():
                return cls(training, start, int(seed))
            case [training, start, seed, sampler] if training in TRAININGS and start in STARTS:
                scheduler, steps, guidance_scale = sampler.split()
                return cls(training, start, int(seed), scheduler, int(steps), float(guidance_scale))
        raise ValueError(
            f"cell must be TRAINING / START / SEED, with TRAINING of {', '.join(TRAININGS)} and START of "
            f"{', '.join(STARTS)}, got {name!r}"
        )


@dataclass(frozen=True)
class Comparison:
    """A table: rows of (training, start), for several training seeds; the others are tested against one."""

    title: str
    rows: Sequence[tuple[str, str]]
    reference: tuple[str, str] = ("offset", "class mean")
    seeds: Sequence[int] = SEEDS

    def cells(self, seed: int) -> list[Cell]:
        """The cells of one training seed, those of one training next to each other."""
        return [Cell(training, start, seed) for training, start in self.rows]


FOUR = ("pure noise", "class mean", "PCA-3", "ground truth")
TABLES = {
    "central": Comparison(
        "Plain and offset training, by start",
        [
            *(("plain", start) for start in FOUR),
            *(("offset", start) for start in FOUR),
            ("offset PCA-1", "PCA-1"),
            ("offset PCA-3", "PCA-3"),
            ("offset PCA-8", "PCA-8"),
            ("offset text PCA-8", "text PCA-8"),
            ("offset", "another's mean"),
            ("smaller a_T", "pure noise"),
        ],
    ),
    "alternatives": Comparison(
        "Offset training and what people use instead",
        [
            ("plain", "pure noise"),
            ("noise offset", "pure noise"),
            ("input perturbation", "pure noise"),
            ("multi-resolution noise", "pure noise"),
            ("zero terminal SNR", "pure noise"),
            ("plain", "DCT 4 x 4"),
            ("plain", "class mean"),
            ("offset", "class mean"),
        ],
    ),
}
