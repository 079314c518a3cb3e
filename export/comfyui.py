"""ComfyUI starts: files of what sampling begins from, a workflow that reads them, and pictures of them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..inference.vae import pictures_of
from ..pca import StartDistribution

UNSCALED = "latent_format_version_0"  # without it ComfyUI takes the latents for scaled by 0.18215
SCALES = {False: 0.18215, True: 0.13025}  # by which ComfyUI scales latents: Stable Diffusion 1 and 2; XL
STEPS, GUIDANCE = 20, 3.0
FIRST_TIMESTEP = 951  # of ComfyUI's ddim_uniform at 20 steps, as of DDIM with leading spacing in diffusers
LONGEST_NAME = 80


class Start(NamedTuple):
    """One x_start: its file's stem, what it is of, and (C, H, W) scaled latents, float32 on the CPU."""

    stem: str
    class_name: str
    what: str
    latents: Tensor


def save_comfyui_starts(
    pipeline: Any,
    folder: str | Path,
    *,
    draws: int = 3,
    seed: int = 0,
    checkpoint_name: str = "onbrand.safetensors",
    prompts: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes what ComfyUI needs to begin from the pipeline's start distribution; returns the files written.

    For each class with pictures, at each size: `<class>.latent`, the class mean as Load Latent reads it, and
    where starts are drawn by default `<class>_draw1.latent` and so on, draw k from the seed `seed + k - 1`.
    Beside each its picture, decoded by the pipeline's VAE, `<class>.png`. Then `workflow.json`, which begins
    from the first of them, and `README.md`. Several sizes are told apart as `<class>_<height>x<width>`.
    checkpoint_name: the single-file checkpoint's name in ComfyUI; prompts: class -> prompt of its workflow,
    the caption prefix or the class's name where there is none.
    Raises ValueError without a start distribution, on draws below 0 and on a prompt of an unknown class.
    """
    distribution = pipeline.start_distribution
    if distribution is None:
        raise ValueError("pipeline must have a start distribution, got one without")
    if draws < 0:
        raise ValueError(f"draws must be at least 0, got {draws}")
    prompts = _prompts(distribution, prompts or {})
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    starts = list(_starts(distribution, draws=draws, seed=seed, factor=pipeline.vae_scale_factor))
    vae = pipeline.vae.config
    written: list[Path] = []
    for start in tqdm(starts, desc="ComfyUI starts", delay=2, leave=False, disable=None):
        latent_file = folder / f"{start.stem}.latent"
        workflow = comfyui_workflow(
            latent_file.name,
            checkpoint_name=checkpoint_name,
            prompt=prompts[start.class_name],
            scheduler=_scheduler(distribution),
        )
        unscaled = start.latents / vae.scaling_factor + (vae.get("shift_factor") or 0.0)
        save_latent(unscaled, latent_file, workflow=workflow)
        picture = latent_file.with_suffix(".png")
        pictures_of(pipeline.vae, start.latents[None])[0].save(picture)
        if not written:
            (folder / "workflow.json").write_text(json.dumps(workflow, indent=2), encoding="utf-8")
        written += [latent_file, picture]
    how_to = _how_to(pipeline, starts, checkpoint_name=checkpoint_name)
    (folder / "README.md").write_text(how_to, encoding="utf-8")
    return [*written, folder / "workflow.json", folder / "README.md"]


def save_latent(unscaled: Tensor, file: str | Path, *, workflow: Mapping[str, Any]) -> None:
    """Writes latents (C, H, W), as the VAE decodes them, where ComfyUI's Load Latent node can read them.

    The workflow stands in the header, so that the file opens it when dropped onto ComfyUI's window.
    """
    tensors = {"latent_tensor": unscaled[None].float().contiguous(), UNSCALED: torch.tensor([])}
    save_file(tensors, file, metadata={"prompt": json.dumps(workflow)})


def comfyui_workflow(
    latent_name: str, *, checkpoint_name: str, prompt: str, scheduler: str = "ddim_uniform"
) -> dict[str, dict[str, Any]]:
    """Text to image from a latent file, in ComfyUI's API format: its window, Load and /prompt all take it."""
    nodes: dict[str, tuple[str, str, dict[str, Any]]] = {
        "1": ("CheckpointLoaderSimple", "Checkpoint", {"ckpt_name": checkpoint_name}),
        "2": ("CLIPTextEncode", "Prompt", {"text": prompt, "clip": ["1", 1]}),
        "3": ("CLIPTextEncode", "Negative prompt", {"text": "", "clip": ["1", 1]}),
        "4": ("LoadLatent", "Start", {"latent": latent_name}),
        "5": ("RepeatLatentBatch", "Number of pictures", {"samples": ["4", 0], "amount": 1}),
        "6": (
            "KSampler",
            "Denoise must be 1.0",
            {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["5", 0],
                "seed": 0, "steps": STEPS, "cfg": GUIDANCE, "sampler_name": "ddim", "scheduler": scheduler,
                "denoise": 1.0,
            },
        ),
        "7": ("VAEDecode", "Decode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("SaveImage", "Save", {"images": ["7", 0], "filename_prefix": "onbrand"}),
    }  # fmt: skip
    return {
        number: {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
        for number, (kind, title, inputs) in nodes.items()
    }


def _starts(distribution: StartDistribution, *, draws: int, seed: int, factor: int) -> Iterator[Start]:
    """The mean and the draws of each class with pictures, at each size."""
    taken: set[str] = set()
    drawn = draws if distribution.default_start == "draw" else 0
    for height, width in distribution.sizes:
        own = distribution.at(height, width)
        size = f"{height * factor}x{width * factor}"
        counts = own.config["counts"] or [1] * len(own.class_names)
        for i, name in enumerate(own.class_names):
            if not counts[i]:
                continue
            safe = _safe(name) or f"class_{i + 1}"
            stem = _distinct(safe if len(distribution.sizes) == 1 else f"{safe}_{size}", taken)
            yield Start(stem, name, f"mean, {size} pixels", own.mean[i].cpu())
            for k in range(drawn):
                draw = own.sample(torch.tensor([i]), torch.Generator().manual_seed(seed + k))[0].cpu()
                yield Start(_distinct(f"{stem}_draw{k + 1}", taken), name, f"draw, {size} pixels", draw)


def _safe(name: str) -> str:
    """The name in letters, digits, "-" and "_" that every file system takes; "" where none is left."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9-]+", "_", plain).strip("_-")[:LONGEST_NAME]


def _distinct(stem: str, taken: set[str]) -> str:
    """The stem, with a number where it is taken, also to file systems that do not tell case apart."""
    free, number = stem, 1
    while free.casefold() in taken:
        number += 1
        free = f"{stem}_{number}"
    taken.add(free.casefold())
    return free


def _prompts(distribution: StartDistribution, given: Mapping[str, str]) -> dict[str, str]:
    names, prefixes = distribution.class_names, distribution.config["caption_prefixes"] or {}
    for name in given:
        if name not in names:
            raise ValueError(f"prompts must be of the classes {', '.join(names)}, got one of {name!r}")
    return {name: given.get(name) or prefixes.get(name) or name for name in names}


def _scheduler(distribution: StartDistribution) -> str:
    """ddim_uniform, which begins exactly, unless training from the start distribution began above it."""
    trained = distribution.config["skip_interval"]
    return "normal" if trained and distribution.offset_from > FIRST_TIMESTEP else "ddim_uniform"


def _how_to(pipeline: Any, starts: list[Start], *, checkpoint_name: str) -> str:
    steps = f"""# Starts for ComfyUI

1. The model as a single file goes to `ComfyUI/models/checkpoints/{checkpoint_name}`.
2. The `.latent` files go to `ComfyUI/input` itself: Load Latent does not list folders inside it.
3. Drop `workflow.json` onto ComfyUI's window, or a `.latent` file to begin from that one.
4. Choose the class in Load Latent and write a prompt of that class. The picture gets the start's size.
5. Leave denoise at 1.0. Below, ComfyUI leaves out the first steps: those that were trained from this start.
6. The workflow's scheduler is `{_scheduler(pipeline.start_distribution)}`. `ddim_uniform` begins at timestep
   {FIRST_TIMESTEP} with {STEPS} steps and adds just the noise of that timestep. `normal`, `simple`,
   `sgm_uniform`, `karras` and `exponential` begin at the last timestep and add 0.2 % more than belongs there.

The pictures are the starts, decoded: for tools that do image to image at full strength."""
    files = [f"`{start.stem}.latent`: {' '.join(start.class_name.split())}, {start.what}" for start in starts]
    lists = {"This model": list(_notes(pipeline)), "Files": files}
    sections = [
        f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines)
        for title, lines in lists.items()
        if lines
    ]
    return "\n\n".join([steps, *sections]) + "\n"


def _notes(pipeline: Any) -> Iterator[str]:
    """What is different for this model, a sentence each."""
    config, is_xl = pipeline.vae.config, hasattr(pipeline, "text_encoder_2")
    scale, shift = config.scaling_factor, config.get("shift_factor") or 0.0
    if scale != SCALES[is_xl] or shift:
        yield (
            f"ComfyUI scales latents of such a model by {SCALES[is_xl]} with a shift of 0; this VAE's factor "
            f"is {scale} and its shift {shift}: ComfyUI will not begin where onbrand does."
        )
    scheduler = pipeline.scheduler.config
    if scheduler.get("rescale_betas_zero_snr"):
        yield (
            "The schedule has zero terminal SNR: at the highest noise nothing of the start is left. "
            "`ddim_uniform` shows some of it."
        )
    betas = (scheduler.get("beta_schedule"), scheduler.get("beta_start"), scheduler.get("beta_end"))
    if betas != ("scaled_linear", 0.00085, 0.012) or scheduler.get("trained_betas") is not None:
        yield (
            "The noise schedule is not Stable Diffusion's, the only one ComfyUI has for such a model: "
            "pictures will differ."
        )
    if pipeline.start_distribution.needs_text:
        yield "Its starts depend on the prompt, which takes onbrand. These are the plain class means."
    if hasattr(pipeline, "controlnet"):
        yield "It has a ControlNet: put Apply ControlNet between the prompts and KSampler."
