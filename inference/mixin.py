"""What turns a pipeline of diffusers into one that starts from its start distribution."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..pca.distribution import StartDistribution
from .choice import StartChoice, check_choice, choose_start
from .component import StartComponent
from .fresh_noise import warn_of_fresh_noise
from .noise import Generators, Initializer, draw_noise
from .picture import encode_pictures
from .prediction import FirstPrediction
from .size import picture_size
from .start import NO_OP_BELOW, at_first_step, start_latents, start_share
from .text import pooled_text

ONE_A_PROMPT = (
    "prompt_2", "negative_prompt", "negative_prompt_2", "image", "prompt_embeds", "negative_prompt_embeds",
    "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
)  # fmt: skip


class OffsetPipelineMixin(StartComponent):
    """Start latents from an optional component `start_distribution`, for pipelines of diffusers.

    A class is made of it by naming it first and diffusers' class second.
    """

    scheduler: Any
    vae_scale_factor: int
    _execution_device: torch.device

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
        return self._call_plain(prompt, call)

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
        prompts = as_list(prompt, prompt_embeds)
        height, width = picture_size(self, height, width)
        size, per_prompt = {"height": height, "width": width}, num_images_per_prompt
        eps = self._noise(len(prompts), per_prompt, choice, **size, generator=generator)
        x_start = self._x_start(prompts, per_prompt, choice, **size, generator=generator)
        schedule = {"timesteps": timesteps, "sigmas": sigmas}
        if choice.noise is not None:
            warn_of_fresh_noise(self.scheduler, others.get("eta", 0.0), stacklevel=5)
        if hasattr(choice.noise, "refine"):
            call = {"num_images_per_prompt": per_prompt, "prompt_embeds": prompt_embeds, **schedule, **size}
            call |= {"num_inference_steps": num_inference_steps, **others}
            texts = [None if text is None else [text] for text in prompts]
            asked = [prompt] if isinstance(prompt, str) else texts
            eps = self._refined(asked, choice.noise, x_start, eps, call)
        latents = self._start_latents(x_start, eps, num_inference_steps, **schedule)
        return {**size, "latents": latents}

    def _noise(
        self,
        prompts: int,
        images: int,
        choice: StartChoice,
        *,
        height: int,
        width: int,
        generator: Generators,
    ) -> Tensor:
        size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        shape = (self.vae.config.latent_channels, *size)
        return draw_noise(prompts, images, shape, generator, initializer=choice.noise)

    def _refined(
        self, prompts: list[Any], initializer: Any, x_start: Tensor | None, eps: Tensor, call: dict[str, Any]
    ) -> Tensor:
        """The noise of each prompt's gallery after its initializer has seen what the network makes of it.

        prompts: each as a call for it alone takes it.
        """
        refined, images = [], call["num_images_per_prompt"]
        for i, prompt in enumerate(prompts):
            own = slice(i * images, (i + 1) * images)
            asked = of_prompt(call, i, len(prompts)) | {"output_type": "latent"}
            predict = FirstPrediction(
                self,
                lambda latents, prompt=prompt, asked=asked: self._call_plain(
                    prompt, asked | {"latents": latents, "generator": torch.Generator().manual_seed(0)}
                ),
                None if x_start is None else x_start[own],
                steps=call["num_inference_steps"],
                schedule={key: call[key] for key in ("timesteps", "sigmas")},
            )
            refined.append(initializer.refine(eps[own], predict))
        return torch.cat(refined)

    def _call_plain(self, prompt: Any, call: dict[str, Any]) -> Any:
        """diffusers' own call."""
        return super().__call__(prompt, **call)  # type: ignore[misc]

    def _x_start(
        self,
        prompts: list[Any],
        images: int,
        choice: StartChoice,
        *,
        height: int,
        width: int,
        generator: Generators,
    ) -> Tensor | None:
        """x_start of each picture, None for pure noise; `images` of them a prompt."""
        distribution = self.start_distribution
        if choice.start_image is not None:
            encoded = self._encode(choice.start_image, height=height, width=width)
            choice = choice._replace(start_image=None, x_start=encoded)
        if distribution is not None and choice.needs_statistics:
            _check_size(distribution, self.vae_scale_factor, height, width)
        text_embeds = None
        if choice.needs_text(distribution):
            text_embeds = pooled_text(self, _texts(prompts))
        size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        return choose_start(
            distribution, prompts, images, choice, size=size, generator=generator, text_embeds=text_embeds
        )

    @property
    def latent_area(self) -> int:
        """Height times width of the latents of a picture of the default size."""
        height, width = picture_size(self)
        return (height // self.vae_scale_factor) * (width // self.vae_scale_factor)

    def _encode(self, images: Image.Image | list[Image.Image], *, height: int, width: int) -> Tensor:
        distribution = self.start_distribution
        transform = None if distribution is None else distribution.config["image_transform"]
        return encode_pictures(images, self.vae, height=height, width=width, transform=transform)

    def _start_latents(self, x_start: Tensor | None, eps: Tensor, steps: int, **schedule: Any) -> Tensor:
        """Start latents, cast and moved for the UNet; warns where they do nothing or it never saw them."""
        if x_start is not None and x_start.shape[1:] != eps.shape[1:]:
            expected, got = [
                " x ".join(str(n * self.vae_scale_factor) for n in x.shape[2:]) for x in (x_start, eps)
            ]
            raise ValueError(f"height and width must be {expected}, the size of the start, got {got}")
        if x_start is not None and self.start_distribution is not None:
            share = start_share(self.scheduler, steps, **schedule)
            first_timestep = int(at_first_step(self.scheduler, steps, **schedule)[1])
            _warn(share, first_timestep, self.start_distribution)
        latents = start_latents(self.scheduler, steps, x_start, eps, **schedule)
        return latents.to(self._execution_device, self.unet.dtype)


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


def as_list(prompt: str | list[str] | None, prompt_embeds: Tensor | None) -> list[Any]:
    """The prompts of a call, None for each that is given by its embeddings alone."""
    if prompt is None:
        if prompt_embeds is None:
            raise ValueError("prompt must be given unless prompt_embeds is, got neither")
        return [None] * len(prompt_embeds)
    return [prompt] if isinstance(prompt, str) else list(prompt)


def of_prompt(call: dict[str, Any], index: int, prompts: int) -> dict[str, Any]:
    """The arguments of a call for one of its prompts, without what looks on while it runs."""
    own = {name: value for name, value in call.items() if not name.startswith("callback")}
    for name in ONE_A_PROMPT:
        value = own.get(name)
        if isinstance(value, list | Tensor) and len(value) == prompts:
            own[name] = value[index : index + 1]
    return own


def _warn(share: float, first_timestep: int, distribution: StartDistribution) -> None:
    # An empty range (S = 0) says the model was never trained with an offset: nothing to fall short of.
    if share < NO_OP_BELOW:
        message = (
            f"this sampler shows the network {share:.2g} of the start, which changes nothing: it begins at "
            "pure noise, as with zero terminal SNR or flow matching"
        )
    elif distribution.config["skip_interval"] and first_timestep < distribution.offset_from:
        message = (
            f"the sampler's first timestep {first_timestep} lies below {distribution.offset_from}, where "
            "training from the start distribution began: the network never saw such a start there"
        )
    else:
        return
    warnings.warn(message, stacklevel=6)  # the caller of the pipeline
