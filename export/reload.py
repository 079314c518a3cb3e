"""Draws one picture from an exported file as somebody without onbrand would. Run by path, in a fresh process.

    python -P reload.py JOB.json

The job's keys are what `draw_elsewhere` writes. Nothing of onbrand may be imported here.
"""

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules["onbrand"] = None  # type: ignore[assignment]  # an import of it fails from here on

import diffusers
import torch
from diffusers import ControlNetModel, DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

# of convolutions on a GPU, which would otherwise round their inputs to 10 bits
EXACT = {"enabled": True, "deterministic": True, "allow_tf32": False}


def main(job: dict[str, Any]) -> None:
    """Writes the picture, (1, H, W, 3) in [0, 1], to the job's `out`."""
    pipeline = load(job).to(job["device"])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.safety_checker = None  # it would compare black with black
    call = dict(job["call"])
    if job["latents"] is not None:
        call["latents"] = load_file(job["latents"])["latents"]
    if job["kind"] == "comfyui":
        call["latents"] = begun_at(job["path"], pipeline, steps=call["num_inference_steps"], seed=job["seed"])
    if job["image"] is not None:
        call["image"] = Image.open(job["image"])
    generator = torch.Generator().manual_seed(job["seed"])
    if "latents" in call:  # where schedulers add noise, it is the one after that of the start
        torch.randn(call["latents"].shape, generator=generator)
    with torch.backends.cudnn.flags(**EXACT):
        images = pipeline(**call, generator=generator, output_type="np").images
    save_file({"image": torch.from_numpy(images).contiguous()}, job["out"])


def begun_at(file: str, pipeline: Any, *, steps: int, seed: int) -> torch.Tensor:
    """Start latents from a .latent file, whose values are the VAE's own: unscaled, unshifted."""
    vae, scheduler = pipeline.vae.config, pipeline.scheduler
    unscaled = load_file(file)["latent_tensor"]
    x_start = (unscaled - (vae.get("shift_factor") or 0.0)) * vae.scaling_factor
    noise = torch.randn(x_start.shape, generator=torch.Generator().manual_seed(seed))
    scheduler.set_timesteps(steps)
    return scheduler.add_noise(x_start, noise, scheduler.timesteps[:1]) / scheduler.init_noise_sigma


def load(job: dict[str, Any]) -> Any:
    """The pipeline, by diffusers' own means, in float32."""
    kind, path, plain_class = job["kind"], job["path"], getattr(diffusers, job["plain_class"])
    options: dict[str, Any] = {"torch_dtype": torch.float32}
    if kind == "diffusers":
        ours = {"custom_pipeline": path, "trust_remote_code": True}
        return DiffusionPipeline.from_pretrained(path, **ours, **options)
    if kind == "plain":
        return DiffusionPipeline.from_pretrained(path, **options)
    if kind == "comfyui":
        return plain_class.from_pretrained(job["model"], **options)
    if kind == "single-file":
        return plain_class.from_single_file(path, config=job["model"], **options)
    if kind == "controlnet":
        controlnet = ControlNetModel.from_pretrained(path, **options)
        return plain_class.from_pretrained(job["model"], controlnet=controlnet, **options)
    if kind != "lora":
        raise ValueError(f"kind must be one that an export is checked by, got {kind!r}")
    if Path(job["base"]).is_file():
        pipeline = plain_class.from_single_file(job["base"], config=job["model"], **options)
    else:
        pipeline = plain_class.from_pretrained(job["base"], **options)
    pipeline.load_lora_weights(path)
    return pipeline


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
