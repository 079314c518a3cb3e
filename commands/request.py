"""What a call of `onbrand sample` asks for, and what can be said against it without looking at a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .prompts import Gallery

GUIDES = ("soft", "paint", "swap")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Request:
    """The options of a call; None stands for the checkpoint's own, or for nothing."""

    checkpoint: str
    galleries: list[Gallery]
    count: int
    start: str | None = None
    start_image: Path | None = None
    project: bool = False
    condition: Path | None = None
    lora: Path | None = None
    lora_strength: float = 1.0
    size: tuple[int, int] | None = None
    scheduler: str = "ddim"
    spacing: str | None = None
    steps: int = 20
    guidance: float = 3.0
    dtype: str | None = None
    offload: bool = False
    coupling: str | None = None
    contrastive: int = 0
    background_of: Path | None = None
    mask: Path | None = None
    optimisation_steps: int | None = None
    layout: Path | None = None
    tickets: Path | None = None
    guides: tuple[str, ...] = ()
    aggregate: tuple[tuple[str, float], ...] = ()
    aggregate_steps: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, naming the option, on files that are not there or no pictures, and on options
        that contradict each other."""
        if self.project and self.start_image is None:
            raise ValueError("--project must come with --start-image, got none")
        if self.start is not None and self.start_image is not None:
            raise ValueError(f"--start must not be given beside --start-image, got {self.start!r}")
        if self.start not in (None, "mean", "draw", "none"):
            raise ValueError(f"--start must be mean, draw or none, got {self.start!r}")
        check_dtype(self.dtype)
        if self.lora is not None and not self.lora.exists():
            raise ValueError(f"--lora must be an existing file or folder, got {self.lora}")
        pictures = {
            "--start-image": self.start_image, "--condition": self.condition,
            "--background-of": self.background_of, "--mask": self.mask,
        }  # fmt: skip
        for option, file in pictures.items():
            if file is not None:
                open_picture(option, file)
        self._check_background()
        self._check_layout()
        self._check_aggregate()
        if self.draws_noise:
            from .coupled import check_files

            check_files(self)

    def condition_for(self, pipeline: Any, size: tuple[int, int]) -> Any:
        """What a ControlNet is shown, fitted to (height, width) as its training's; None where nothing is."""
        from ..inference.inversion import fitted_as
        from ..inference.picture import fit_to_frame

        if self.condition is None:
            return None
        (height, width), picture = size, open_picture("--condition", self.condition)
        return fit_to_frame(picture, height, width, **fitted_as(pipeline))

    def known(self) -> list[dict[str, Any]]:
        """What is known before the checkpoint is opened of each picture's recipe."""
        settings = {"checkpoint": self.checkpoint, "steps": self.steps, "guidance": self.guidance}
        return [
            settings | {"prompt": g.prompt, "negative_prompt": g.negative, **self.noise_of(g, j)}
            for g in self.galleries
            for j in range(self.count)
        ]

    def _check_background(self) -> None:
        """Raises ValueError on options that new backgrounds have no use for."""
        if self.background_of is None:
            for option, value in (("--mask", self.mask), ("--optimisation-steps", self.optimisation_steps)):
                if value is not None:
                    raise ValueError(f"{option} must come with --background-of, got {value} alone")
            return
        others = {
            "--start-image": self.start_image, "--condition": self.condition, "--offload": self.offload,
            "--contrastive": self.contrastive, "--negative": any(g.negative for g in self.galleries),
        }  # fmt: skip
        for option, value in others.items():
            if value:
                raise ValueError(f"{option} must not be given beside --background-of")
        if self.scheduler != "ddim":
            raise ValueError(f"--scheduler must be ddim beside --background-of, got {self.scheduler}")
        if self.guidance != 1:
            raise ValueError(f"--guidance must be 1 beside --background-of, got {self.guidance:g}")

    def _check_layout(self) -> None:
        """Raises ValueError on a layout that nothing follows, and on the reverse."""
        for guide in self.guides:
            if guide not in GUIDES:
                raise ValueError(f"--guide must be one of {', '.join(GUIDES)}, got {guide!r}")
        if self.layout is None:
            for option, value in (("--tickets", self.tickets), ("--guide", ", ".join(self.guides))):
                if value:
                    raise ValueError(f"{option} must come with --layout, got {value} alone")
            return
        if self.tickets is None and not self.guides:
            raise ValueError(f"--layout must come with --tickets or --guide, got {self.layout} alone")
        if self.background_of is not None:
            raise ValueError("--layout must not be given beside --background-of")

    def _check_aggregate(self) -> None:
        """Raises ValueError on what several checkpoints cannot draw together."""
        if not self.aggregate:
            if self.aggregate_steps is not None:
                raise ValueError(
                    f"--aggregate-steps must come with --aggregate, got {self.aggregate_steps} alone"
                )
            return
        if len(self.aggregate) > 2:
            raise ValueError(f"--aggregate must be given once or twice, got {len(self.aggregate)} times")
        others = {
            "--start-image": self.start_image, "--background-of": self.background_of,
            "--layout": self.layout,
        }  # fmt: skip
        for option, value in others.items():
            if value:
                raise ValueError(f"{option} must not be given beside --aggregate")
        if self.scheduler not in ("ddim", "ddpm"):
            raise ValueError(f"--scheduler must be ddim or ddpm beside --aggregate, got {self.scheduler}")
        if self.shared_steps > self.steps:
            raise ValueError(
                f"--aggregate-steps must be at most --steps {self.steps}, got {self.shared_steps}"
            )

    @property
    def shared_steps(self) -> int:
        """How many steps an aggregate takes together."""
        return 3 if self.aggregate_steps is None else self.aggregate_steps

    @property
    def refining_steps(self) -> int:
        """How many steps keep the object before new backgrounds."""
        return 50 if self.optimisation_steps is None else self.optimisation_steps

    @property
    def draws_noise(self) -> bool:
        """Whether an initializer draws the noise, instead of each picture's own seed."""
        return self.coupling is not None or self.contrastive > 0 or self.layout is not None

    def unlike_a_trace(self) -> str | None:
        """The first option whose pictures a trace would not show."""
        options = {
            "--coupling": self.coupling, "--contrastive": self.contrastive, "--layout": self.layout,
            "--aggregate": self.aggregate, "--background-of": self.background_of,
        }  # fmt: skip
        return next((option for option, value in options.items() if value), None)

    def noise_of(self, gallery: Gallery, picture: int) -> dict[str, Any]:
        """What a recipe says of a picture's noise: a coupled one is a place in its gallery's single draw."""
        name = self.coupling or (self.background_of and "repulsive")
        if name is None and not self.draws_noise:
            return {"seed": gallery.seed + picture, "coupling": None}
        file = Path(name or "")
        coupling = named_file(file) if file.suffix == ".safetensors" else name
        place = {"name": coupling, "contrastive": self.contrastive, "picture": picture, "of": self.count}
        return {"seed": gallery.seed, "coupling": place}


def open_picture(option: str, file: Path) -> Any:
    """A picture with its pixels read. Raises ValueError, naming the option, on a file that is none and on
    float pixels, whose scale is unknown."""
    from PIL import Image

    if not file.is_file():
        raise ValueError(f"{option} must be an existing picture, got {file}")
    try:
        picture = Image.open(file)
        picture.load()
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(f"{option} must be a picture, got {file}, which is none that can be read") from None
    if picture.mode == "F":
        raise ValueError(f"{option} must be a picture of 8-bit or 16-bit pixels, got {file}, of float ones")
    return picture


def check_dtype(name: str | None) -> None:
    """Raises ValueError on a precision that weights cannot have; None is none asked for."""
    if name not in (None, *DTYPES):
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {name!r}")


def named_file(file: Path | None) -> dict[str, str] | None:
    """A file by name and content, for a recipe."""
    if file is None:
        return None
    files = [file] if file.is_file() else sorted(file.glob("*.safetensors"))
    digest = hashlib.sha256()
    for each in files:
        digest.update(each.read_bytes())
    return {"file": str(file), "sha256": digest.hexdigest()}


def read_aggregate(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """CHECKPOINT:WEIGHT as its two parts. Raises ValueError on anything else."""
    found = []
    for text in texts:
        name, _, weight = text.rpartition(":")
        try:
            value = float(weight)
        except ValueError:
            value = -1.0
        if not name or not 0 <= value <= 1:
            rule = "CHECKPOINT:WEIGHT with a weight of the first model between 0 and 1"
            raise ValueError(f"--aggregate must be {rule}, got {text!r}")
        found.append((name, value))
    return tuple(found)
