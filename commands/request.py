"""What a call of `onbrand sample` asks for, and what can be said against it without looking at a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .prompts import Gallery

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

    def __post_init__(self) -> None:
        """Raises ValueError, naming the option, on files that are not there or no pictures, and on options
        that contradict each other."""
        if self.project and self.start_image is None:
            raise ValueError("--project must come with --start-image, got none")
        if self.start is not None and self.start_image is not None:
            raise ValueError(f"--start must not be given beside --start-image, got {self.start!r}")
        if self.start not in (None, "mean", "draw", "none"):
            raise ValueError(f"--start must be mean, draw or none, got {self.start!r}")
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.lora is not None and not self.lora.exists():
            raise ValueError(f"--lora must be an existing file or folder, got {self.lora}")
        for option, file in (("--start-image", self.start_image), ("--condition", self.condition)):
            if file is not None:
                open_picture(option, file)

    def known(self) -> list[dict[str, Any]]:
        """What is known before the checkpoint is opened of each picture's recipe."""
        settings = {"checkpoint": self.checkpoint, "steps": self.steps, "guidance": self.guidance}
        return [
            settings | {"prompt": g.prompt, "negative_prompt": g.negative, "seed": g.seed + j}
            for g in self.galleries
            for j in range(self.count)
        ]


def open_picture(option: str, file: Path) -> Any:
    """A picture with its pixels read. Raises ValueError, naming the option, on a file that is none."""
    from PIL import Image

    if not file.is_file():
        raise ValueError(f"{option} must be an existing picture, got {file}")
    try:
        picture = Image.open(file)
        picture.load()
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(f"{option} must be a picture, got {file}, which is none that can be read") from None
    return picture
