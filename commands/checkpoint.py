"""A checkpoint to draw from: what it has, whether it can do what is asked, and the pipeline itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline

from ..export.lora import check_lora_fits, read_tensors
from ..inference.choice import resolve_classes
from ..inference.generate import build_sampler
from ..inference.load import load_pipeline, to_draw
from ..inference.sampler_names import find_sampler
from ..inference.size import picture_size
from ..inference.start import start_share
from ..pca import ANY_CLASS, Sampler, StartDistribution
from ..pca.samplers import first_timestep
from .recipes import weights_digest
from .request import Request

COMPONENT = "start_distribution"
ADAPTER = "lora"


class Facts(NamedTuple):
    """What decides whether a request can be drawn."""

    start: StartDistribution | None
    scheduler_config: Mapping[str, Any]
    factor: int  # pixels a latent
    size: tuple[int, int]  # height and width in pixels if none is asked for
    has_controlnet: bool


class Settled(NamedTuple):
    """What a request comes to on a checkpoint.

    start: None where a picture takes its place; classes: one a gallery, None where none is used.
    """

    start: str | None
    size: tuple[int, int]
    classes: list[str | None]
    sampler: Sampler
    sampler_config: dict[str, Any]

    def latent_size(self, pipeline: Any) -> tuple[int, int]:
        """Height and width of the pictures' latents."""
        factor = pipeline.vae_scale_factor
        return self.size[0] // factor, self.size[1] // factor


def facts_of_folder(path: str | Path) -> Facts | None:
    """What a local folder's small files say; None if it is no complete one, for the loader to say why."""
    folder = Path(path)
    try:
        index = DiffusionPipeline.load_config(folder) if folder.is_dir() else {}
        vae, unet, scheduler = (
            json.loads((folder / name).read_text())
            for name in ("vae/config.json", "unet/config.json", "scheduler/scheduler_config.json")
        )
        factor, side = 2 ** (len(vae["block_out_channels"]) - 1), unet["sample_size"]
    except (OSError, ValueError, KeyError):
        return None
    start = None
    if (index.get(COMPONENT) or [None])[0] is not None:
        start = StartDistribution.from_pretrained(folder, subfolder=COMPONENT)
    sides = start.sizes[0] if start else (side, side) if isinstance(side, int) else side
    return Facts(start, scheduler, factor, (sides[0] * factor, sides[1] * factor), "controlnet" in index)


def facts_of_pipeline(pipeline: Any) -> Facts:
    """The same of a pipeline."""
    return Facts(
        pipeline.start_distribution,
        pipeline.scheduler.config,
        pipeline.vae_scale_factor,
        picture_size(pipeline),
        hasattr(pipeline, "controlnet"),
    )


def settle(request: Request, facts: Facts) -> Settled:
    """What the request comes to. Raises ValueError, naming the option, on what this checkpoint cannot do."""
    name, plain = request.checkpoint, facts.start is None
    if facts.has_controlnet and request.background_of is not None:
        raise ValueError(f"--background-of must not be given for {name}, which has a ControlNet")
    if facts.has_controlnet and request.condition is None:
        raise ValueError(f"--condition must be a picture for {name}, which has a ControlNet, got none")
    if request.condition is not None and not facts.has_controlnet:
        raise ValueError(f"--condition must not be given for {name}, which has no ControlNet")
    if plain:
        if any(gallery.class_name is not None for gallery in request.galleries):
            raise ValueError(f"--class must not be given for {name}, which has no start distribution")
        if request.start not in (None, "none"):
            got = repr(request.start)
            raise ValueError(f"--start must be none for {name}, which has no start distribution, got {got}")
        if request.project:
            raise ValueError(f"--project must not be given for {name}, which has no start distribution")
    start = request.start
    if start is None and request.start_image is None:
        start = "none" if facts.start is None else facts.start.default_start
    size = _settled_size(request, facts, uses_statistics=start in ("mean", "draw") or request.project)
    sampler, config = _settled_sampler(request, facts, uses_start=start != "none")
    return Settled(start, size, _classes(request, facts, start=start, size=size), sampler, config)


def _settled_size(request: Request, facts: Facts, *, uses_statistics: bool) -> tuple[int, int]:
    size = request.size or facts.size
    step = max(8, facts.factor)  # diffusers' pipelines refuse anything else
    if size[0] % step or size[1] % step or min(size) < 1:
        raise ValueError(f"--size must be two multiples of {step}, got {size[0]} {size[1]}")
    if facts.start is not None and uses_statistics:
        sizes = [(h * facts.factor, w * facts.factor) for h, w in facts.start.sizes]
        if size not in sizes:
            listed = " or ".join(f"{h} {w}" for h, w in sizes)
            got = f"{size[0]} {size[1]}"
            raise ValueError(
                f"--size must be {listed} (height and width) as the start distribution has, got {got}"
            )
    return size


def _settled_sampler(request: Request, facts: Facts, *, uses_start: bool) -> tuple[Sampler, dict[str, Any]]:
    with naming("--scheduler"):
        name, config = find_sampler(request.scheduler)
    sampler = Sampler(name, request.steps, request.spacing)
    # diffusers' schedulers fail in many ways where they are asked for what they cannot do
    with naming("--scheduler" if request.spacing is None else "--scheduler and --spacing", Exception):
        scheduler = build_sampler(facts.scheduler_config, sampler, config)
        if not hasattr(scheduler, "init_noise_sigma"):
            raise ValueError(f"scheduler must be one that a Stable Diffusion pipeline can use, got {name}")
    with naming("--scheduler and --steps", Exception):
        (start_share if uses_start else first_timestep)(scheduler, request.steps)
    return sampler, config


def _classes(request: Request, facts: Facts, *, start: str | None, size: tuple[int, int]) -> list[str | None]:
    names = [gallery.class_name for gallery in request.galleries]
    distribution = facts.start
    if distribution is None:
        return names
    with naming("--class"):
        if start == "none" or (start is None and not request.project):
            for name in names:
                if name is not None:
                    distribution.class_id(name, size=None)
            return names
        ids = resolve_classes(
            distribution,
            [gallery.prompt for gallery in request.galleries],
            names,
            size=(size[0] // facts.factor, size[1] // facts.factor),
            any_class=not request.project,
        )
    return [None if i == ANY_CLASS else distribution.class_names[i] for i in ids.tolist()]


@contextmanager
def naming(option: str, errors: type[Exception] = ValueError) -> Iterator[None]:
    """Puts the option's name before an error's message, which becomes one line."""
    try:
        yield
    except errors as error:
        raise ValueError(f"{option}: {' '.join(str(error).split()) or type(error).__name__}") from error


def open_pipeline(path: str | Path, request: Request, *, device: torch.device) -> tuple[Any, str]:
    """The pipeline where it draws, and the digest of its weights before any LoRA.

    Raises ValueError on a checkpoint that is none and a LoRA that does not fit it.
    """
    pipeline = load_pipeline(path, torch_dtype=dtype_of(request, device))
    weights = weights_digest(pipeline)
    if request.lora is not None:
        _add_lora(pipeline, request)
    if request.offload and not request.aggregate:
        pipeline.enable_model_cpu_offload(device=device)
    else:  # of several checkpoints whole ones take turns
        to_draw(pipeline, device)
    return pipeline, weights


def dtype_of(request: Request, device: torch.device) -> torch.dtype:
    """What the weights are cast to: as asked; else float32 on a CPU, and on an accelerator float16, whose
    pictures are nearer to float32's than bfloat16's are."""
    return getattr(torch, request.dtype or ("float32" if device.type == "cpu" else "float16"))


def _add_lora(pipeline: Any, request: Request) -> None:
    with naming(f"--lora must fit {request.checkpoint}, got {request.lora}", Exception):
        check_lora_fits(read_tensors(request.lora)[0], pipeline)  # type: ignore[arg-type]
        pipeline.load_lora_weights(str(request.lora), adapter_name=ADAPTER)
    if not pipeline.get_list_adapters():
        raise ValueError(
            f"--lora must fit {request.checkpoint}, got {request.lora}, which changes none of its layers"
        )
    pipeline.set_adapters([ADAPTER], [request.lora_strength])
