"""The cells of every table: which training is drawn from where, with which sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onbrand.inference.sampler_names import familiar_name

from .catalogue import PICTURES
from .starts import STARTS
from .trainings import (
    ALTERNATIVES,
    PICTURE_COUNTS,
    RANGES,
    RANKS,
    SHARES,
    SHORT_STEPS,
    STEP_COUNTS,
    TRAININGS,
)

RESCALED = "rescale="


@dataclass(frozen=True)
class Cell:
    """One training drawn from one start, by DDIM with 20 steps and guidance 2 unless said otherwise.

    start: of STARTS; `another's mean` is the next class's, `ground truth` a real picture of the very product.
    spacing: of the timesteps, None for the checkpoint's own; rescale: diffusers' `guidance_rescale`.
    """

    training: str
    start: str
    seed: int = 0
    scheduler: str = "DDIMScheduler"
    steps: int = 20
    guidance_scale: float = 2.0
    spacing: str | None = None
    rescale: float = 0.0

    @property
    def name(self) -> str:
        """What its line of results goes by."""
        parts = [self.training, self.start, str(self.seed)]
        return " / ".join(parts if self.is_usual else [*parts, self.sampler])

    @property
    def told_start(self) -> str:
        """The start, and what is unusual about the sampler."""
        told, usual = [self.start], Cell(self.training, self.start)
        if (self.scheduler, self.steps) != (usual.scheduler, usual.steps):
            told.append(f"{familiar_name(self.scheduler, {})} with {self.steps} steps")
        if self.guidance_scale != usual.guidance_scale:
            told.append(f"guidance {self.guidance_scale:g}")
        if self.rescale:
            told.append(f"rescaled by {self.rescale:g}")
        if self.spacing:
            told.append(f"{self.spacing} steps")
        return ", ".join(told)

    @property
    def sampler(self) -> str:
        """Scheduler, steps, guidance, and what else is set."""
        told = f"{self.scheduler} {self.steps} {self.guidance_scale:g}"
        if self.spacing:
            told += f" {self.spacing}"
        return f"{told} {RESCALED}{self.rescale:g}" if self.rescale else told

    @property
    def is_usual(self) -> bool:
        """Whether the sampler is the one of most cells."""
        return self == Cell(self.training, self.start, self.seed)

    @classmethod
    def named(cls, name: str) -> Cell:
        """The inverse of `name`; Raises ValueError on a training or start that there is not."""
        match name.split(" / "):
            case [training, start, seed] if training in TRAININGS and start in STARTS and seed.isdigit():
                return cls(training, start, int(seed))
            case [training, start, seed, sampler] if training in TRAININGS and start in STARTS:
                scheduler, steps, guidance_scale, *others = sampler.split()
                rescale = [float(told.removeprefix(RESCALED)) for told in others if told.startswith(RESCALED)]
                spacing = [told for told in others if not told.startswith(RESCALED)]
                return cls(
                    training, start, int(seed), scheduler, int(steps), float(guidance_scale),
                    spacing=spacing[0] if spacing else None, rescale=rescale[0] if rescale else 0.0,
                )  # fmt: skip
        raise ValueError(
            f"cell must be TRAINING / START / SEED, with TRAINING of {', '.join(TRAININGS)} and START of "
            f"{', '.join(STARTS)}, got {name!r}"
        )


OFFSET = Cell("offset", "class mean")
FEW = 192


@dataclass(frozen=True)
class Comparison:
    """A table: a row a cell, for several training seeds; the others are tested against one of them.

    pictures: of each set of prompts in a cell; a cell that has more for another table keeps them.
    """

    title: str
    rows: Sequence[Cell]
    reference: Cell = OFFSET
    seeds: Sequence[int] = (0,)
    pictures: int = FEW

    def cells(self, seed: int) -> list[Cell]:
        """The cells of one training seed."""
        return [replace(row, seed=seed) for row in self.rows]


def _cells(*rows: tuple[str, str]) -> list[Cell]:
    return [Cell(training, start) for training, start in rows]


FOUR = ("pure noise", "class mean", "PCA-3", "ground truth")
BOTH = (("plain", "pure noise"), ("offset", "class mean"))
OFTEN = tuple((f"offset at {share:.0%}", "class mean") for share in SHARES)
SHORT = tuple((f"{kind}, {SHORT_STEPS} steps", start) for kind, start in BOTH)
SAMPLERS = (
    *(("DDIMScheduler", steps) for steps in (20, 50, 100)),
    *(("DPMSolverMultistepScheduler", steps) for steps in (20, 25)),
    ("UniPCMultistepScheduler", 20),
    ("EulerDiscreteScheduler", 30),
)
TABLES = {
    "central": Comparison(
        "Plain and offset training, by start",
        _cells(
            *(("plain", start) for start in FOUR),
            *(("plain, same timesteps", start) for start in FOUR[:2]),
            *(("offset", start) for start in FOUR),
            OFTEN[0],
            *((f"offset PCA-{components}", f"PCA-{components}") for components in (1, 3, 8)),
            ("plain", "text PCA-8"),
            ("offset text PCA-8", "text PCA-8"),
            ("offset", "another's mean"),
            ("smaller a_T", "pure noise"),
        ),
        seeds=(0, 1, 2),
        pictures=PICTURES,
    ),
    "alternatives": Comparison(
        "Offset training and what people use instead",
        [
            *_cells(*((training, "pure noise") for training in ("plain", *ALTERNATIVES))),
            Cell("zero terminal SNR", "pure noise", rescale=0.7),
            Cell("plain", "pure noise", spacing="trailing"),
            *_cells(("plain", "DCT 4 x 4"), ("plain", "class mean"), BOTH[1], OFTEN[0]),
        ],
        seeds=(0, 1, 2),
        pictures=PICTURES,
    ),
    "methods": Comparison(
        "All weights and LoRA",
        _cells(
            *((f"{kind} LoRA {rank}", start) for rank in RANKS for kind, start in (*BOTH, OFTEN[0])),
            *((f"offset LoRA {rank}, all layers", "class mean") for rank in RANKS),
            (f"offset at 30% LoRA {RANKS[1]}, all layers", "class mean"),
            *SHORT,
        ),
        reference=Cell(*SHORT[1]),
    ),
    "pictures": Comparison(
        "How many pictures",
        _cells(*((f"{kind}, {n} pictures", start) for n in PICTURE_COUNTS for kind, start in BOTH), *SHORT),
        reference=Cell(*SHORT[1]),
    ),
    "steps": Comparison(
        "How many training steps",
        _cells(*((f"{kind}, {n} steps", start) for n in STEP_COUNTS for kind, start in BOTH), *BOTH),
    ),
    "range": Comparison(
        "The offset range and how often it is drawn",
        _cells(*((f"offset, {told}", "class mean") for told in RANGES), SHORT[1]),
        reference=Cell(*SHORT[1]),
    ),
    "emphasis": Comparison(
        "How often the offset range is drawn",
        _cells(BOTH[1], *OFTEN),
        seeds=(0, 1, 2),
        pictures=PICTURES,
    ),
    "samplers": Comparison(
        "Samplers",
        [Cell(*row, scheduler=name, steps=steps) for row in BOTH for name, steps in SAMPLERS],
    ),
    "guidance": Comparison(
        "Guidance",
        [
            *(Cell(*row, guidance_scale=scale) for row in BOTH for scale in (1.0, 2.0, 3.0, 5.0, 7.5)),
            *(Cell(*BOTH[1], guidance_scale=scale, rescale=0.7) for scale in (5.0, 7.5)),
        ],
    ),
    "controlnet": Comparison(
        "A ControlNet that is shown the product, on the frozen UNet",
        _cells(*((f"{kind} ControlNet", start) for kind, start in BOTH)),
        reference=Cell("offset ControlNet", "class mean"),
        pictures=3 * FEW,  # three noises a control for each product of the catalogue
    ),
}
