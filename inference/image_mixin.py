"""The start distribution in image-to-image and inpainting, which may begin part of the way down."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from .choice import StartChoice, check_choice
from .mixin import OffsetPipelineMixin, as_list
from .noise import Initializer
from .start import at_first_step, start_latents


class Ready(NamedTuple):
    """What sampling begins with, (B, C, H, W) each, in place of what diffusers would make."""

    latents: Tensor
    noise: Tensor


class OffsetFromPictureMixin(OffsetPipelineMixin):
    """Makes the first latents before diffusers' call, which finds them where it would make its own."""

    _ready: Ready | None = None

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        """diffusers' own; of a call that has its first latents already these, and with them their noise."""
        ready = self._ready
        if ready is None:
            return super().prepare_latents(*args, **kwargs)  # type: ignore[misc]
        if not kwargs.get("return_noise"):  # image-to-image
            return ready.latents
        _, _, *image_latents = super().prepare_latents(*args, **kwargs)  # type: ignore[misc]
        return (ready.latents, ready.noise, *image_latents)

    def _begin_index(self, strength: float, call: dict[str, Any]) -> int:
        """The index of the first timestep that is sampled, as diffusers counts it."""
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be in [0, 1], got {strength}")
        custom = next((call[key] for key in ("timesteps", "sigmas") if call.get(key) is not None), None)
        steps = call["num_inference_steps"] if custom is None else len(custom)
        begin = steps - min(int(steps * strength), steps)
        if begin == steps:
            raise ValueError(f"strength must leave a step of {steps} to do, got {strength}")
        return begin * self.scheduler.order

    def _call_from(
        self, x_start: Tensor | None, eps: Tensor, begin: int, prompt: Any, call: dict[str, Any]
    ) -> Any:
        """diffusers' call, begun at x_start with the noise of the timestep at index `begin`."""
        schedule = {key: call.get(key) for key in ("timesteps", "sigmas")}
        steps, where = call["num_inference_steps"], (self._execution_device, self.unet.dtype)
        latents = start_latents(self.scheduler, steps, x_start, eps, **schedule, begin=begin)
        if begin == 0:  # start latents are for pipelines that multiply by it
            latents = latents * float(at_first_step(self.scheduler, steps, **schedule)[0].init_noise_sigma)
        self._ready = Ready(latents.to(*where), eps.to(*where))  # type: ignore[call-overload]
        try:
            return self._call_plain(prompt, call)
        finally:
            self._ready = None

    def _call_plain(self, prompt: Any, call: dict[str, Any]) -> Any:
        return super(OffsetPipelineMixin, self).__call__(prompt, **call)  # type: ignore[misc]


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
        strength: float = 0.8,
        class_name: str | Sequence[str | None] | None = None,
        project_start: bool = False,
        noise: Initializer | None = None,
        **call: Any,
    ) -> Any:
        """Pictures of the prompts, begun at `image` with as much noise as `strength` says.

        image: a PIL picture or one a prompt, framed as the catalogue was; or scaled latents.
        project_start: begin at its projection on its class's components, without what they lack.
        height, width: pixels, the start distribution's if not given.
        class_name, noise and Raises: as in text-to-image.
        Without a start distribution and noise this is diffusers' own call; so it is with SDXL's
        denoising_start, whose image is noisy already.
        """
        own = self.start_distribution is not None or project_start or noise is not None
        if image is None or not own or call.get("denoising_start") is not None:
            return self._call_plain(prompt, {"image": image, "strength": strength, **call})
        picture = {"x_start" if isinstance(image, Tensor) else "start_image": image}
        choice = StartChoice(class_name, project_start=project_start, noise=noise, **picture)
        check_choice(self.start_distribution, choice, latents=call.get("latents"))
        call = {"num_inference_steps": 50, **call}
        begin = self._begin_index(strength, call)
        prompts, count = as_list(prompt, call.get("prompt_embeds")), call.get("num_images_per_prompt", 1)
        height, width = self._size(call.pop("height", None), call.pop("width", None))
        drawn: dict[str, Any] = {"height": height, "width": width, "generator": call.get("generator")}
        eps = self._noise(len(prompts), count, choice, **drawn)
        x_start = self._x_start(prompts, count, choice, **drawn)
        # any latents will do: the first ones are ready
        call |= {"image": x_start, "strength": strength}
        return self._call_from(x_start, eps, begin, prompt, call)


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
        strength: float = 1.0,
        class_name: str | Sequence[str | None] | None = None,
        start: str = "mean",
        start_image: Image.Image | list[Image.Image] | None = None,
        project_start: bool = False,
        x_start: Tensor | None = None,
        noise: Initializer | None = None,
        **call: Any,
    ) -> Any:
        """Pictures of the prompts inside the mask; diffusers' own arguments keep their meaning.

        Sampling begins at x_start, chosen as in text-to-image, if its first timestep lies in the offset range
        (at strength 1 always) or a picture or latents are chosen; else at `image`, as diffusers does.
        Raises ValueError as in text-to-image, and on padding_mask_crop, whose crops have no start.
        """
        choice = StartChoice(class_name, start, start_image, x_start, project_start, noise)
        check_choice(self.start_distribution, choice, latents=call.get("latents"))
        call = {
            "image": image,
            "mask_image": mask_image,
            "strength": strength,
            "num_inference_steps": 50,
        } | call
        own = self.start_distribution is not None or choice.replaces_noise
        if not own or call.get("latents") is not None or call.get("denoising_start") is not None:
            return self._call_plain(prompt, call)
        begin = self._begin_index(strength, call)
        starts = choice.chooses_start or (choice.needs_statistics and self._in_range(begin, call))
        if not starts and noise is None:
            return self._call_plain(prompt, call)
        if call.get("padding_mask_crop") is not None:
            raise ValueError(
                f"padding_mask_crop must be None with a start, got {call['padding_mask_crop']}: "
                "the start is that of a whole picture"
            )
        height, width = self._size(call.get("height"), call.get("width"))
        prompts, count = as_list(prompt, call.get("prompt_embeds")), call.get("num_images_per_prompt", 1)
        drawn: dict[str, Any] = {"height": height, "width": width, "generator": call.get("generator")}
        eps = self._noise(len(prompts), count, choice, **drawn)
        if not starts:  # the noise alone is chosen: begin where diffusers would
            choice = choice._replace(start="none", start_image=None if begin == 0 else image)
        begun_at = self._x_start(prompts, count, choice, **drawn)
        call |= {"height": height, "width": width}
        return self._call_from(begun_at, eps, begin, prompt, call)

    def _in_range(self, begin: int, call: dict[str, Any]) -> bool:
        if begin == 0 or self.start_distribution is None:
            return self.start_distribution is not None
        schedule = {key: call.get(key) for key in ("timesteps", "sigmas")}
        steps = call["num_inference_steps"]
        first_timestep = int(at_first_step(self.scheduler, steps, **schedule, begin=begin)[1])
        return first_timestep >= self.start_distribution.offset_from
