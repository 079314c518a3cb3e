"""The start distribution in image-to-image and inpainting, which may begin part of the way down."""

import inspect
from collections.abc import Sequence
from math import log
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..pca.rgb import upright
from .choice import StartChoice, check_choice
from .fresh_noise import warn_of_fresh_noise
from .mixin import OffsetPipelineMixin, as_list
from .noise import Initializer
from .size import picture_size
from .start import at_first_step, start_latents


class FirstLatents(NamedTuple):
    """What sampling begins with, (B, C, H, W) each; latents None: the picture as diffusers encodes it."""

    latents: Tensor | None
    noise: Tensor


class OffsetFromPictureMixin(OffsetPipelineMixin):
    """Makes the first latents before diffusers' call, which finds them where it would make its own."""

    _first: FirstLatents | None = None

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        """diffusers' own; in a call whose first latents are made these, for inpainting with their noise."""
        if self._first is None:
            return super().prepare_latents(*args, **kwargs)  # type: ignore[misc]
        latents, noise = self._first
        if "return_noise" not in kwargs:  # image-to-image
            return latents
        encoding = kwargs | {"return_image_latents": True}
        _, _, image_latents = super().prepare_latents(*args, **encoding)  # type: ignore[misc]
        if latents is None:
            latents = self.scheduler.add_noise(image_latents, noise, kwargs["timestep"])
        return (latents, noise, image_latents) if kwargs["return_image_latents"] else (latents, noise)

    def _begin_index(self, call: dict[str, Any]) -> int:
        """The index of the first timestep that is sampled, as diffusers counts it."""
        strength, steps, schedule = call["strength"], call["num_inference_steps"], _schedule(call)
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be in [0, 1], got {strength}")
        if schedule:
            steps = len(at_first_step(self.scheduler, steps, **schedule)[0].timesteps)
        done = int(steps * strength)
        if done < 1:
            raise ValueError(
                f"strength must leave at least one step to do, got {strength} of num_inference_steps {steps}"
            )
        return (steps - done) * self.scheduler.order

    def _drawn(
        self, prompt: Any, choice: StartChoice, call: dict[str, Any], *, starts: bool = True
    ) -> tuple[Tensor | None, Tensor]:
        """x_start and noise of each picture, drawn as in text-to-image; no x_start unless it starts there."""
        if choice.noise is not None:
            _check_noise(choice.noise)
            warn_of_fresh_noise(self.scheduler, call.get("eta", 0.0), stacklevel=5)
        prompts, images = as_list(prompt, call.get("prompt_embeds")), call.get("num_images_per_prompt", 1)
        how = {"height": call["height"], "width": call["width"], "generator": call.get("generator")}
        eps = self._noise(len(prompts), images, choice, **how)
        return self._x_start(prompts, images, choice, **how) if starts else None, eps

    def _first_latents(self, x_start: Tensor | None, eps: Tensor, begin: int, call: dict[str, Any]) -> Tensor:
        """The latents at the timestep at index begin, as the scheduler's step takes them."""
        steps, schedule = call["num_inference_steps"], _schedule(call)
        if begin:
            latents = start_latents(self.scheduler, steps, x_start, eps, **schedule, begin=begin)
            return latents.to(self._execution_device, self.unet.dtype)
        latents = self._start_latents(x_start, eps, steps, **schedule)
        return latents * at_first_step(self.scheduler, steps, **schedule)[0].init_noise_sigma

    def _call_from(self, latents: Tensor | None, eps: Tensor, prompt: Any, call: dict[str, Any]) -> Any:
        self._first = FirstLatents(latents, eps.to(self._execution_device, self.unet.dtype))
        try:
            return self._call_plain(prompt, call)
        finally:
            self._first = None

    def _call_plain(self, prompt: Any, call: dict[str, Any]) -> Any:
        return super(OffsetPipelineMixin, self).__call__(prompt, **call)  # type: ignore[misc]

    def _size_for(self, image: Any, call: dict[str, Any]) -> dict[str, int]:
        """Height and width in pixels: of latents their own, else by default the start distribution's.

        Of its sizes the nearest to the picture's shape, the first's of several.
        """
        first = image[0] if isinstance(image, list) and image else image
        height, width = picture_size(self)
        if isinstance(first, Tensor) and first.shape[-3] == self.vae.config.latent_channels:
            height, width = [side * self.vae_scale_factor for side in first.shape[-2:]]
        elif isinstance(first, Image.Image) and self.start_distribution is not None:
            sides = _nearest(self.start_distribution.sizes, first)
            height, width = [side * self.vae_scale_factor for side in sides]
        return {"height": call.get("height") or height, "width": call.get("width") or width}


class OffsetImageToImageMixin(OffsetFromPictureMixin):
    """Image-to-image from the picture as it is, or as its class's components show it.

    A class is made of it by naming it first and diffusers' class second.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | list[Image.Image] | Tensor | None = None,
        *,
        strength: float | None = None,
        class_name: str | Sequence[str | None] | None = None,
        project_start: bool = False,
        noise: Initializer | None = None,
        **call: Any,
    ) -> Any:
        """Pictures of the prompts, begun at `image` with as much noise as `strength` says.

        image: a PIL picture or one a prompt, framed as the catalogue was; or scaled latents.
        strength: diffusers' default if None.
        project_start: begin at its projection on its class's components, without what they lack.
        height, width: pixels, by default the start distribution's nearest to the picture's shape, else the
            UNet's.
        class_name, noise and Raises: as in text-to-image.
        Without a start distribution and noise this is diffusers' own call; so it is with SDXL's latents, and
        with its denoising_start, whose image is noisy already.
        """
        call |= {"image": image} if strength is None else {"image": image, "strength": strength}
        choice = StartChoice(class_name, project_start=project_start, noise=noise)
        if _begins_itself(call, choice):
            return self._call_plain(prompt, call)
        picture: dict[str, Any] = {"x_start" if isinstance(image, Tensor) else "start_image": image}
        choice = choice._replace(**picture)
        check_choice(self.start_distribution, choice, latents=None)
        if self.start_distribution is None and noise is None:
            return self._call_plain(prompt, call)
        _check_image(image, self.vae.config.latent_channels)
        call = {"num_inference_steps": 50, "strength": self._default_strength(), **call}
        begin = self._begin_index(call)
        x_start, eps = self._drawn(prompt, choice, call | self._size_for(image, call))
        latents = self._first_latents(x_start, eps, begin, call)
        return self._call_from(latents, eps, prompt, call | {"image": latents})

    def _default_strength(self) -> float:
        plain_call: Any = super(OffsetPipelineMixin, self).__call__  # type: ignore[misc]
        return inspect.signature(plain_call).parameters["strength"].default


class OffsetInpaintMixin(OffsetFromPictureMixin):
    """Inpainting whose hole starts from the start distribution where training did, in the offset range.

    A class is made of it by naming it first and diffusers' class second.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        *,
        strength: float | None = None,
        class_name: str | Sequence[str | None] | None = None,
        start: str = "mean",
        start_image: Image.Image | list[Image.Image] | None = None,
        project_start: bool = False,
        x_start: Tensor | None = None,
        noise: Initializer | None = None,
        **call: Any,
    ) -> Any:
        """Pictures of the prompts inside the mask; diffusers' own arguments keep their meaning.

        strength: 1 if None, where this is not diffusers' own call.
        Sampling begins at x_start, chosen as in text-to-image, if its first timestep lies in the offset range
        (at strength 1 always) or a picture or latents are chosen; else at `image`, as diffusers does.
        height, width: pixels, by default the start distribution's nearest to the shape of `image`, else the
            UNet's.
        Without a start distribution and a choice this is diffusers' own call; so it is with its latents and
        SDXL's denoising_start.
        Raises ValueError as in text-to-image, and on padding_mask_crop, whose crops have no start.
        """
        call |= {"image": image, "mask_image": mask_image}
        call |= {} if strength is None else {"strength": strength}
        choice = StartChoice(class_name, start, start_image, x_start, project_start, noise)
        plain = _begins_itself(call, choice)
        check_choice(self.start_distribution, choice, latents=None)
        if plain or (self.start_distribution is None and not choice.replaces_noise):
            return self._call_plain(prompt, call)
        image = _upright(image)
        call |= {"image": image, "mask_image": _upright(mask_image)}
        call = {"num_inference_steps": 50, "strength": 1.0, **call, **self._size_for(image, call)}
        begin = self._begin_index(call)
        starts = choice.chooses_start or (choice.needs_statistics and self._in_range(begin, call))
        at_picture = begin > 0 and not starts
        if at_picture and noise is None:
            prompts = as_list(prompt, call.get("prompt_embeds"))
            pictures = len(prompts) * call.get("num_images_per_prompt", 1)
            return self._call_plain(prompt, call | _one_each(call, pictures))
        crop = call.get("padding_mask_crop")
        if starts and crop is not None:
            raise ValueError(
                f"padding_mask_crop must be None unless start is 'none', got {crop}: "
                "a start is that of a whole picture"
            )
        drawn_at, eps = self._drawn(prompt, choice, call, starts=starts)
        latents = None if at_picture else self._first_latents(drawn_at, eps, begin, call)
        return self._call_from(latents, eps, prompt, call | _one_each(call, len(eps)))

    def _in_range(self, begin: int, call: dict[str, Any]) -> bool:
        if self.start_distribution is None or begin == 0:
            return self.start_distribution is not None
        steps, schedule = call["num_inference_steps"], _schedule(call)
        _, first_timestep = at_first_step(self.scheduler, steps, **schedule, begin=begin)
        return int(first_timestep) >= self.start_distribution.offset_from


def _schedule(call: dict[str, Any]) -> dict[str, Any]:
    """The custom schedule of a call, if it has one."""
    return {key: call[key] for key in ("timesteps", "sigmas") if call.get(key) is not None}


def _begins_itself(call: dict[str, Any], choice: StartChoice) -> bool:
    """Whether diffusers' own arguments say where to begin. Raises ValueError if the choice does so too."""
    own = [name for name in ("latents", "denoising_start") if call.get(name) is not None]
    values = choice._replace(start=None)._asdict()  # type: ignore[arg-type]
    chosen = [name for name, value in values.items() if value is not None and value is not False]
    if own and chosen:
        raise ValueError(f"{own[0]} must be the only start, got {chosen[0]} beside it")
    return bool(own)


def _check_image(image: Any, channels: int) -> None:
    if isinstance(image, Tensor):
        good, got = image.ndim in (3, 4) and image.shape[-3] == channels, f"a tensor {tuple(image.shape)}"
    else:
        pictures = image if isinstance(image, list) else [image]
        good, got = all(isinstance(one, Image.Image) for one in pictures) and bool(pictures), repr(image)
    if not good:
        raise ValueError(f"image must be PIL pictures or latents of {channels} channels, got {got}")


def _check_noise(noise: Initializer) -> None:
    if hasattr(noise, "refine"):
        raise ValueError(
            f"noise must be drawn without the network where a picture is given, got {type(noise).__name__}, "
            "which looks at first predictions from noise alone"
        )


def _upright(given: Any) -> Any:
    """PIL pictures turned as their EXIF blocks say, which diffusers does not read; anything else as it is."""
    if isinstance(given, list):
        return [_upright(one) for one in given]
    return upright(given) if isinstance(given, Image.Image) else given


def _nearest(sizes: Sequence[tuple[int, int]], picture: Image.Image) -> tuple[int, int]:
    """The (H, W) whose ratio is nearest to the upright picture's; the first of equals."""
    width, height = ImageOps.exif_transpose(picture).size
    return min(sizes, key=lambda size: abs(log(size[0] / size[1]) - log(height / width)))


def _one_each(call: dict[str, Any], pictures: int) -> dict[str, list[Any]]:
    """Lists of images and masks with one for each picture drawn: those of a prompt next to each other.

    diffusers would repeat the whole list, which gives a prompt's second picture to another prompt's image.
    """
    lists = {key: call[key] for key in ("image", "mask_image") if isinstance(call[key], list)}
    for key, given in lists.items():
        if not given or pictures % len(given):
            raise ValueError(f"{key} must be one, or as many as divide {pictures} pictures, got {len(given)}")
    return {
        key: [one for one in given for _ in range(pictures // len(given))] for key, given in lists.items()
    }
