"""Every export is drawn from in a fresh process, without onbrand, before it counts as done."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ..inference.choice import StartChoice
from ..inference.component import plain_class
from ..inference.size import picture_size
from .reload import EXACT

SCRIPT = Path(__file__).with_name("reload.py")
TOLERANCE = 1  # in 8-bit levels
STEPS = 20
SEED = 0


@dataclass(frozen=True)
class Proof:
    """The picture that every export must draw again.

    image: (1, H, W, 3) in [0, 1]; latents: what a pipeline without a start distribution is handed for it;
    call: prompt and settings, as JSON; device: where it was drawn, as others round differently.
    """

    image: np.ndarray
    latents: torch.Tensor
    call: dict[str, Any]
    class_name: str | None
    device: str
    plain_class: str
    condition: Image.Image | None


@torch.no_grad()
def draw_proof(pipeline: Any, *, prompt: str, class_name: str | None) -> Proof:
    """Draws the picture to compare with, from the class's expected start if the pipeline has one.

    A ControlNet is shown a drawn picture: the same for all.
    """
    pipeline = copy.copy(pipeline)  # the caller's keeps its safety checker
    pipeline.set_progress_bar_config(disable=True)
    pipeline.safety_checker = None  # it would compare black with black
    start = pipeline.start_distribution
    call = {"prompt": prompt, "num_inference_steps": STEPS, "guidance_scale": 3.0}
    height, width = picture_size(pipeline)
    condition = None
    if hasattr(pipeline, "controlnet"):
        condition = Image.linear_gradient("L").convert("RGB").resize((width, height))
    class_name = None if start is None else class_name
    own = {} if class_name is None else {"class_name": class_name}
    shown = {} if condition is None else {"image": condition}
    with warnings.catch_warnings(), torch.backends.cudnn.flags(**EXACT):
        warnings.simplefilter("ignore")
        begun = pipeline._start(
            prompt, StartChoice(class_name), num_inference_steps=STEPS, generator=_generator()
        )
        images = pipeline(**call, **own, **shown, generator=_generator(), output_type="np").images
    size = {"height": height, "width": width}
    plain = plain_class(type(pipeline)).__name__
    latents, device = begun["latents"].float().cpu(), str(pipeline._execution_device)
    return Proof(images, latents, call | size, class_name, device, plain, condition)


def check_elsewhere(
    proof: Proof, kind: str, path: Path, *, model: str | Path | None = None, base: str | None = None
) -> float:
    """Draws the proof's picture from an export in a fresh process; returns the largest difference, 0 to 255.

    kind: "diffusers" or "plain" (a folder), "single-file" (`model`: a diffusers folder of its architecture),
    "lora" (a file on `base`), "controlnet" (a folder, with the rest of `model`), "comfyui" (the .latent file
    of the class, drawn from by `model`).
    Raises ValueError, with the other process's last words, if it fails or draws another picture.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call, latents = dict(proof.call), folder / "latents.safetensors"
        native = kind == "diffusers" and proof.class_name is not None
        if native:  # the folder's own start distribution is what is to be shown
            call["class_name"] = proof.class_name
        elif kind != "comfyui":
            save_file({"latents": proof.latents.contiguous()}, latents)
        if proof.condition is not None:
            proof.condition.save(folder / "condition.png")
        job = {
            "kind": kind, "path": str(path), "model": None if model is None else str(model), "base": base,
            "plain_class": proof.plain_class, "call": call, "seed": SEED, "device": proof.device,
            "latents": str(latents) if latents.exists() else None,
            "image": None if proof.condition is None else str(folder / "condition.png"),
            "out": str(folder / "image.safetensors"),
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job))
        environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules")}
        done = subprocess.run(
            [sys.executable, "-P", str(SCRIPT), str(folder / "job.json")],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise ValueError(f"{kind} export must load in a fresh process, got: {last}")
        image = load_file(folder / "image.safetensors")["image"].numpy()
    worst = float(np.abs(image - proof.image).max() * 255)
    if not worst <= TOLERANCE:
        raise ValueError(
            f"{kind} export must draw the same picture within {TOLERANCE}/255, got {worst:.2f}/255"
        )
    return worst


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
