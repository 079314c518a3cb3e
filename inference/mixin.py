"""What turns a pipeline of diffusers into one that starts from its start distribution."""

import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..pca import StartDistribution, check_text, check_vae
from .choice import StartChoice, check_choice, choose_start
from .noise import Generators, Initializer, draw_noise
from .picture import encode_pictures
from .start import at_first_step, start_latents
from .text import pooled_text

logger = logging.getLogger(__name__)

COMPONENT = "start_distribution"
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
NOT_GIVEN: Any = object()


class OffsetPipelineMixin:
    """Start latents from an optional component `start_distribution`, for pipelines of diffusers.

    A class is made of it by naming it first and diffusers' class second.
    """

    start_distribution: StartDistribution | None
    vae: Any
    unet: Any
    scheduler: Any
    vae_scale_factor: int
    register_modules: Any
    register_to_config: Any
    _execution_device: torch.device

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Adds the component to what diffusers reads off a pipeline's class: two lists and a signature."""
        super().__init_subclass__(**kwargs)
        if OffsetPipelineMixin in cls.__bases__:
            plain: Any = cls.__bases__[1]
            changed: Any = cls
            changed._optional_components = [*plain._optional_components, COMPONENT]
            changed._exclude_from_cpu_offload = [*plain._exclude_from_cpu_offload, COMPONENT]
            changed.__init__ = _with_component(plain.__init__)

    def set_start_distribution(self, start_distribution: StartDistribution | None) -> None:
        """Attaches a start distribution after checking that it belongs to this VAE; None detaches it.

        Raises ValueError, with both values, on another VAE, another number of latent channels, or other text
        encoders where it depends on text.
        """
        if start_distribution is not None:
            ours, theirs = start_distribution.latent_shape[0], self.vae.config.latent_channels
            if ours != theirs:
                raise ValueError(
                    f"VAE latent_channels must be {ours} as in the start distribution, got {theirs}"
                )
            check_vae(start_distribution.config["vae_fingerprint"], self.vae)
            if start_distribution.needs_text:
                told = partial(pooled_text, self, full_precision=True)
                check_text(start_distribution.config["text_fingerprint"], told)
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
        **call: Any,
    ) -> Any:
        """Pictures of the prompts, started at x_start; diffusers' own arguments keep their meaning.

        class_name: one, or one a prompt; None: the only class there is, or by caption prefix.
        start: "mean" of the class, and of the text where the start distribution depends on it, a "draw", or
            "none" for pure noise.
        start_image: start from this picture (or one a prompt) instead.
        x_start: start from these scaled latents (one, one a prompt or one a picture) instead.
        project_start: start from the projection of either on the class's components.
        noise: an initializer, asked once a prompt.
        call: diffusers' own arguments by name. Of these, height and width (pixels) are the start
        distribution's if None, else the UNet's; latents are handed on; generator must be on the CPU.
        Without a start distribution and any of the arguments above this is diffusers' own call.
        Raises ValueError on arguments that contradict each other or the start distribution.
        Source: METHODS 1, "Inference start".
        """
        choice = StartChoice(class_name, start, start_image, x_start, project_start, noise)
        check_choice(self.start_distribution, choice, latents=call.get("latents"))
        if call.get("latents") is None and (self.start_distribution is not None or choice.replaces_noise):
            call |= self._start(prompt, choice, **call)
        return super().__call__(prompt, **call)  # type: ignore[misc]

    def _start(
        self,
        prompt: str | list[str] | None,
        choice: StartChoice,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        prompt_embeds: Tensor | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """The size and the latents to call diffusers with; reads diffusers' own arguments, others apart."""
        prompts = _as_list(prompt, prompt_embeds)
        height, width = self._size(height, width)
        size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        shape = (self.vae.config.latent_channels, *size)
        eps = draw_noise(len(prompts), num_images_per_prompt, shape, generator, initializer=choice.noise)
        if choice.start_image is not None:
            encoded = self._encode(choice.start_image, height=height, width=width)
            choice = choice._replace(start_image=None, x_start=encoded)
        if self.start_distribution is not None and choice.needs_statistics:
            _check_size(self.start_distribution, self.vae_scale_factor, height, width)
        text_embeds = None
        if choice.needs_text(self.start_distribution):
            text_embeds = pooled_text(self, _texts(prompts))
        x_start = choose_start(
            self.start_distribution,
            prompts,
            num_images_per_prompt,
            choice,
            size=size,
            generator=generator,
            text_embeds=text_embeds,
        )
        schedule = {"timesteps": timesteps, "sigmas": sigmas}
        latents = self._start_latents(x_start, eps, num_inference_steps, **schedule)
        return {"height": height, "width": width, "latents": latents}

    @property
    def latent_area(self) -> int:
        """Height times width of the latents of a picture of the default size."""
        height, width = self._size(None, None)
        return (height // self.vae_scale_factor) * (width // self.vae_scale_factor)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels, by default the start distribution's, else the UNet's."""
        if self.start_distribution is not None:
            sides = self.start_distribution.sizes[0]
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


def _with_component(plain_init: Callable[..., None]) -> Callable[..., None]:
    """diffusers' __init__ with one more optional component, in its signature too."""

    @functools.wraps(plain_init)
    def __init__(
        self: Any, *components: Any, start_distribution: StartDistribution | None = None, **named: Any
    ) -> None:
        plain_init(self, *components, **named)
        self.set_start_distribution(start_distribution)

    annotation = StartDistribution | None
    added = inspect.Parameter(COMPONENT, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
    signature = inspect.signature(plain_init)
    changed: Any = __init__
    changed.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])
    changed.__annotations__ = {**plain_init.__annotations__, COMPONENT: annotation}
    return changed


def _check_size(distribution: StartDistribution, factor: int, height: int, width: int) -> None:
    sizes = [(h * factor, w * factor) for h, w in distribution.sizes]
    if (height, width) not in sizes:
        expected = " or ".join(f"{h} x {w}" for h, w in sizes)
        raise ValueError(
            f"height and width must be {expected} as in the start distribution, got {height} x {width}"
        )


def _texts(prompts: Sequence[str | None]) -> list[str]:
    if any(prompt is None for prompt in prompts):
        raise ValueError("prompt must be given where the start depends on the text, got prompt_embeds alone")
    return [prompt for prompt in prompts if prompt is not None]


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
            stacklevel=6,  # the caller of the pipeline
        )
