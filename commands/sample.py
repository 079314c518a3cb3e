"""onbrand sample: prompts to PNGs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .console import best_device, quiet_console


def read_prompts(prompts: list[str]) -> list[str]:
    """Prompts as given; `@FILE` stands for the file's non-empty lines. Raises ValueError if none is left."""
    found: list[str] = []
    for prompt in prompts:
        if prompt.startswith("@"):
            file = Path(prompt[1:])
            if not file.is_file():
                raise ValueError(f"prompt file must exist, got {str(file)!r}")
            found += [line.strip() for line in file.read_text().splitlines() if line.strip()]
        else:
            found.append(prompt)
    if not found:
        raise ValueError(f"prompts must be at least one, got none in {prompts}")
    return found


def check_condition(condition: Path | None, *, checkpoint: str, wanted: bool) -> None:
    """Raises ValueError on a ControlNet without a condition picture, and on one without a ControlNet."""
    if wanted and condition is None:
        raise ValueError(f"--condition must be a picture for {checkpoint}, which has a ControlNet, got none")
    if condition is not None and not wanted:
        raise ValueError(f"--condition must not be given for {checkpoint}, which has no ControlNet")


def sample(
    checkpoint: str,
    prompts: list[str],
    *,
    class_name: str | None,
    start: str,
    start_image: Path | None,
    condition: Path | None,
    size: tuple[int, int] | None,
    count: int,
    scheduler: str,
    steps: int,
    guidance: float,
    seed: int,
    output: Path,
) -> Path:
    """Draws `count` pictures a prompt into `output`; returns the contact sheet."""
    prompts = [prompt for prompt in read_prompts(prompts) for _ in range(count)]
    quiet_console()
    from PIL import Image, PngImagePlugin
    from rich.progress import Progress

    from ..evaluation import contact_sheet
    from ..inference.generate import generate
    from ..inference.load import load_pipeline
    from ..pca import Sampler
    from ..train.models import resolve_base

    pipeline = load_pipeline(resolve_base(checkpoint)).to(best_device())
    if pipeline.start_distribution is None:
        if class_name is not None:
            raise ValueError(f"--class must not be given for {checkpoint}, which has no start distribution")
        start = "none"
    recipe: dict[str, Any] = {
        "checkpoint": checkpoint, "class": class_name, "start": start, "scheduler": scheduler, "steps": steps,
        "guidance": guidance,
    }  # fmt: skip
    call: dict[str, Any] = {} if size is None else {"height": size[0], "width": size[1]}
    check_condition(condition, checkpoint=checkpoint, wanted=hasattr(pipeline, "controlnet"))
    images = None
    if condition is not None:
        recipe["condition"] = str(condition)
        images = [Image.open(condition).convert("RGB")] * len(prompts)
    if start_image is not None:
        recipe["start_image"] = str(start_image)
        call["start_image"] = Image.open(start_image)
    with Progress(transient=True) as progress:
        bar = progress.add_task("drawing", total=len(prompts))
        pictures = generate(
            pipeline,
            prompts,
            images=images,
            class_names=[class_name] * len(prompts) if pipeline.start_distribution else None,
            start=start,
            sampler=Sampler(scheduler, steps),
            guidance_scale=guidance,
            seed=seed,
            advance=lambda done: progress.advance(bar, done),
            **call,
        )
    output.mkdir(parents=True, exist_ok=True)
    for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        info = PngImagePlugin.PngInfo()
        info.add_text("onbrand", json.dumps({**recipe, "prompt": prompt, "seed": seed + i}))
        picture.save(output / f"{i:04d}.png", pnginfo=info)
    sheet = output / "sheet.jpg"
    contact_sheet(pictures, captions=prompts, columns=min(8, max(count, 4))).save(sheet, quality=92)
    return sheet
