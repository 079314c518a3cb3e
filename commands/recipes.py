"""Recipes: what it takes to draw a picture again."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from safetensors.torch import save

from ..inference.generate import build_sampler
from ..inference.sampler_names import familiar_name
from ..pca import StartDistribution
from .request import Request, named_file

if TYPE_CHECKING:
    from .checkpoint import Settled

Recipe = dict[str, Any]


def recipes_of(
    request: Request, settled: Settled, pipeline: Any, *, weights: str, others: list[Recipe], device: str
) -> list[Recipe]:
    """Of each picture all that it takes to draw it again, as JSON knows it."""
    own = pipeline.scheduler.config
    scheduler = build_sampler(own, settled.sampler, settled.sampler_config)
    # what diffusers' own way from one scheduler to another would leave out
    plain = type(scheduler).from_config(own).config
    differences = {
        key: value
        for key, value in scheduler.config.items()
        if not key.startswith("_") and value != plain.get(key)
    }
    shared = {
        "checkpoint": request.checkpoint,
        "weights": weights,
        "start_distribution": start_digest(pipeline.start_distribution, settled.latent_size(pipeline)),
        "start": settled.start,
        "start_image": named_file(request.start_image),
        "project": request.project,
        "condition": named_file(request.condition),
        "background_of": named_file(request.background_of),
        "mask": named_file(request.mask),
        "optimisation_steps": request.refining_steps if request.background_of else None,
        "layout": named_file(request.layout),
        "tickets": named_file(request.tickets),
        "guides": list(request.guides),
        "aggregate": [
            {"checkpoint": name, "weight": weight, "steps": request.shared_steps, **other}
            for (name, weight), other in zip(request.aggregate, others, strict=True)
        ],
        "lora": named_file(request.lora),
        "lora_strength": None if request.lora is None else request.lora_strength,
        "scheduler": settled.sampler.scheduler,
        "scheduler_config": differences,
        "steps": request.steps,
        "guidance": request.guidance,
        "height": settled.size[0],
        "width": settled.size[1],
        "device": device,
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "versions": {
            "onbrand": importlib.import_module("onbrand").__version__,
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
        },
    }
    recipes = [
        {
            "prompt": gallery.prompt,
            "negative_prompt": gallery.negative,
            "class": name,
            **request.noise_of(gallery, j),
            **shared,
        }
        for gallery, name in zip(request.galleries, settled.classes, strict=True)
        for j in range(request.count)
    ]
    return json.loads(json.dumps(recipes))


def parameters(recipe: Recipe) -> str:
    """A recipe as A1111 writes it, which picture viewers and galleries show."""
    values = {
        "Steps": recipe["steps"],
        "Sampler": familiar_name(recipe["scheduler"], recipe["scheduler_config"]),
        "CFG scale": recipe["guidance"],
        "Seed": recipe["seed"],
        "Size": f"{recipe['width']}x{recipe['height']}",
        "Model": Path(recipe["checkpoint"]).name,
        "Start": recipe["start"] or "image",
        "Class": recipe["class"],
        "Lora": recipe["lora"] and Path(recipe["lora"]["file"]).name,
        "Version": f"onbrand {recipe['versions']['onbrand']}",
    }
    negative = recipe["negative_prompt"]
    lines = [recipe["prompt"], *([f"Negative prompt: {negative}"] if negative else [])]
    told = [f"{key}: {_quoted(value)}" for key, value in values.items() if value is not None]
    return "\n".join([*lines, ", ".join(told)])


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def weights_digest(pipeline: Any) -> str:
    """What tells a pipeline's weights from others: of every tensor its name, shape and first and last values.

    All values of gigabytes would take longer than drawing; training changes each tensor's.
    """
    digest = hashlib.sha256()
    for name, part in sorted(pipeline.components.items()):
        if isinstance(part, torch.nn.Module) and not isinstance(part, StartDistribution):
            for key, tensor in part.state_dict().items():
                flat = tensor.flatten()
                ends = torch.cat([flat[:64], flat[-64:]]).cpu().double()
                digest.update(f"{name}.{key} {tuple(tensor.shape)}".encode() + ends.numpy().tobytes())
    return digest.hexdigest()[:16]


def start_digest(distribution: StartDistribution | None, size: tuple[int, int]) -> str | None:
    """The sha256 of the safetensors file of a start distribution of this size (latents)."""
    if distribution is None or size not in distribution.sizes:
        return None
    tensors = {name: tensor.cpu() for name, tensor in distribution.at(*size).state_dict().items()}
    return hashlib.sha256(save(tensors, metadata={"format": "pt"})).hexdigest()
