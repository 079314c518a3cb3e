"""Stable Diffusion pipelines that start from the start distribution they were saved with."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from ..pca import StartDistribution, check_vae
from .choice import check_choices, choose_start
from .noise import Generators, Initializer, draw_noise
from .picture import encode_pictures
from .start import at_first_step, start_latents

logger = logging.getLogger(__name__)

COMPONENT = "start_distribution"
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
SINGLE_FILES = (".safetensors", ".ckpt")
NOT_GIVEN: Any = object()


class OffsetPipelineMixin:
    """Start latents from an optional component `start_distribution`, for pipelines of diffusers."""

    start_distribution: StartDistribution | None
    vae: Any
    unet: Any
    scheduler: Any
    vae_scale_factor: int
    register_modules: Any
    register_to_config: Any
    _execution_device: torch.device

    def set_start_distribution(self, start_distribution: StartDistribution | None) -> None:
        """Attaches a start distribution after checking that it belongs to this VAE; None detaches it.

        Raises ValueError, with both values, on another VAE or another number of latent channels.
        """
        if start_distribution is not None:
            ours, theirs = start_distribution.latent_shape[0], self.vae.config.latent_channels
            if ours != theirs:
                raise ValueError(
                    f"VAE latent_channels must be {ours} as in the start distribution, got {theirs}"
                )
            check_vae(start_distribution.config["vae_fingerprint"], self.vae)
        self.register_modules(start_distribution=start_distribution)

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's dtype: the start distribution is float32 in any case."""
        return self.unet.dtype

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        class_name: str | Sequence[str | None] | None = None,
        start: str = "mean",
        start_image: Image.Image | list[Image.Image] | None = None,
        project_start: bool = False,
        x_start: Tensor | None = None,
        noise: Initializer | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        num_images_per_prompt: int | None = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Pictures of the prompts, started at x_start; diffusers' own arguments keep their meaning.

        class_name: one, or one a prompt; None: the only class there is, or by caption prefix.
        start: "mean" of the class, a "draw" from its components, or "none" for pure noise.
        start_image: start from this picture (or one a prompt) instead.
        x_start: start from these scaled latents (one, one a prompt or one a picture) instead.
        project_start: start from the projection of either on the class's components.
        noise: an initializer, asked once a prompt. generator: on the CPU. latents: handed on as they are.
        height, width: pixels, those of the start distribution if None.
        Without a start distribution and any of these arguments this is diffusers' own call.
        Raises ValueError on arguments that contradict each other or the start distribution.
        Source: METHODS 1, "Inference start".
        """
        choices = {
            "class_name": class_name,
            "project_start": project_start,
            "start_image": start_image,
            "x_start": x_start,
            "noise": noise,
        }
        check_choices(self.start_distribution, latents=latents, start=start, choices=choices)
        images = num_images_per_prompt or 1
        is_offset = any(o is not None for o in (self.start_distribution, start_image, x_start, noise))
        if latents is None and is_offset:
            height, width = self._size(height, width)
            prompts = _as_list(prompt, kwargs.get("prompt_embeds"))
            factor = self.vae_scale_factor
            shape = (self.vae.config.latent_channels, height // factor, width // factor)
            eps = draw_noise(len(prompts), images, shape, generator, initializer=noise)
            if start_image is not None:
                x_start = self._encode(start_image, height=height, width=width)
            x_start = choose_start(
                self.start_distribution,
                prompts,
                images,
                class_name=class_name,
                start=start,
                x_start=x_start,
                project_start=project_start,
                generator=generator,
            )
            schedule = {"timesteps": timesteps, "sigmas": sigmas}
            latents = self._start_latents(x_start, eps, num_inference_steps, **schedule)
        return super().__call__(  # type: ignore[misc]
            prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            num_images_per_prompt=images,
            generator=generator,
            latents=latents,
            **kwargs,
        )

    @property
    def latent_area(self) -> int:
        """Height times width of the latents of a picture of the default size."""
        height, width = self._size(None, None)
        return (height // self.vae_scale_factor) * (width // self.vae_scale_factor)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels, by default the start distribution's, else the UNet's."""
        if self.start_distribution is not None:
            sides = self.start_distribution.latent_shape[1:]
        else:
            sample_size = self.unet.config.sample_size
            sides = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
        return height or sides[0] * self.vae_scale_factor, width or sides[1] * self.vae_scale_factor

    def _encode(self, images: Image.Image | list[Image.Image], *, height: int, width: int) -> Tensor:
        distribution = self.start_distribution
        transform = None if distribution is None else distribution.config["image_transform"]
        return encode_pictures(images, self.vae, height=height, width=width, transform=transform)

    def _start_latents(self, x_start: Tensor | None, eps: Tensor, steps: int, **schedule: Any) -> Tensor:
        """Start latents, cast and moved for the UNet; warns where it was not trained on them."""
        if x_start is not None and x_start.shape[1:] != eps.shape[1:]:
            expected, got = [
                " x ".join(str(n * self.vae_scale_factor) for n in x.shape[2:]) for x in (x_start, eps)
            ]
            raise ValueError(f"height and width must be {expected}, the size of the start, got {got}")
        if x_start is not None and self.start_distribution is not None:
            first_timestep = int(at_first_step(self.scheduler, steps, **schedule)[1])
            _warn_below_range(first_timestep, self.start_distribution)
        latents = start_latents(self.scheduler, steps, x_start, eps, **schedule)
        return latents.to(self._execution_device, self.unet.dtype)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Saves the folder as diffusers does, in a layout that also loads where onbrand is not installed."""
        if self.start_distribution is not None:
            # diffusers would write the full module path, which only loads where that module is installed.
            self.register_to_config(start_distribution=(COMPONENT, type(self.start_distribution).__name__))
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Loads a folder or hub id as diffusers does, with its start distribution where it has one.

        Without one the pipeline is diffusers' own, and the log says so. No trust flag is needed.
        Raises ValueError if the start distribution belongs to another VAE.
        """
        start_distribution = kwargs.pop(COMPONENT, NOT_GIVEN)
        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        pipeline = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, **{COMPONENT: None}, **kwargs
        )
        if start_distribution is NOT_GIVEN:
            index = cls.load_config(pretrained_model_name_or_path, **hub)  # type: ignore[attr-defined]
            start_distribution = None
            if (index.get(COMPONENT) or [None])[0] is not None:
                start_distribution = StartDistribution.from_pretrained(
                    pretrained_model_name_or_path, subfolder=COMPONENT, **hub
                )
            else:
                logger.warning(
                    "%s has no start distribution: it samples as a plain pipeline",
                    pretrained_model_name_or_path,
                )
        pipeline.set_start_distribution(start_distribution)
        return pipeline


class OffsetStableDiffusionPipeline(OffsetPipelineMixin, StableDiffusionPipeline):
    """diffusers' StableDiffusionPipeline with an optional start distribution."""

    _optional_components: ClassVar = [*StableDiffusionPipeline._optional_components, COMPONENT]
    _exclude_from_cpu_offload: ClassVar = [*StableDiffusionPipeline._exclude_from_cpu_offload, COMPONENT]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker | None,
        feature_extractor: CLIPImageProcessor | None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = True,
        start_distribution: StartDistribution | None = None,
    ) -> None:
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self.set_start_distribution(start_distribution)


def load_pipeline(
    path: str | Path,
    *,
    torch_dtype: torch.dtype | None = None,
    config: str | Path | None = None,
    plain: bool = False,
) -> OffsetStableDiffusionPipeline:
    """A pipeline from a diffusers folder (with or without a start distribution), a single file or a hub id.

    torch_dtype: of the models; the start distribution is float32. config: a diffusers folder or hub id of the
    single file's architecture; if None, diffusers guesses it and asks the hub. plain: a start
    distribution in the folder is left unread.
    Raises ValueError on a path that is none of these, and on a folder without a VAE or not of Stable
    Diffusion 1 or 2.
    """
    local, dtype = Path(path), {} if torch_dtype is None else {"torch_dtype": torch_dtype}
    start: dict[str, Any] = {COMPONENT: None} if plain else {}
    if local.is_file():
        if local.suffix not in SINGLE_FILES:
            raise ValueError(f"model file must end in {' or '.join(SINGLE_FILES)}, got {path}")
        architecture = {} if config is None else {"config": str(config)}
        return OffsetStableDiffusionPipeline.from_single_file(str(path), **dtype, **architecture)
    if local.is_dir():
        _check_folder(local)
    elif local.is_absolute() or str(path).startswith((".", "~")) or str(path).count("/") != 1:
        raise ValueError(f"model must be an existing folder, a single file or a hub id, got {str(path)!r}")
    try:
        return OffsetStableDiffusionPipeline.from_pretrained(str(path), **dtype, **start)
    except OSError as error:
        if local.is_dir():
            raise
        raise ValueError(
            f"model must be an existing folder, a single file or a hub id, got {str(path)!r}: {error}"
        ) from error


def _check_folder(folder: Path) -> None:
    index_file = folder / StableDiffusionPipeline.config_name
    if not index_file.is_file():
        raise ValueError(f"model folder must hold {index_file.name}, got {folder} without it")
    index = StableDiffusionPipeline.load_config(folder)
    if (index.get("vae") or [None])[0] is None or not (folder / "vae").is_dir():
        raise ValueError(f"model folder must hold a VAE, got {folder} without one")
    if {"text_encoder_2", "transformer"} & set(index):
        kind = index["_class_name"]
        raise ValueError(f"model must be a Stable Diffusion 1 or 2 pipeline, got {kind} in {folder}")


def _as_list(prompt: str | list[str] | None, prompt_embeds: Tensor | None) -> list[Any]:
    if prompt is None:
        if prompt_embeds is None:
            raise ValueError("prompt must be given unless prompt_embeds is, got neither")
        return [None] * len(prompt_embeds)
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _warn_below_range(first_timestep: int, distribution: StartDistribution) -> None:
    # An empty range (S = 0) says the model was never trained with an offset: nothing to fall short of.
    if distribution.config["skip_interval"] and first_timestep < distribution.offset_from:
        warnings.warn(
            f"the sampler's first timestep {first_timestep} lies below {distribution.offset_from}, where "
            "training from the start distribution began: the network never saw such a start there",
            stacklevel=5,  # the caller of the pipeline
        )
