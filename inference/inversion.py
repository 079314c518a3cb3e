"""DDIM run backwards: the initial noise that a picture comes from, and DDIM forwards as a smooth map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from ..pca import Sampler
from .choice import StartChoice, check_choice
from .generate import build_sampler
from .picture import encode_pictures, fit_to_frame, precise
from .size import picture_size, scale_factor
from .start import is_flow
from .unet_call import told_to_unet
from .vae import checkpointed, decode

DDIM = Sampler("DDIMScheduler", 20)


class Step(NamedTuple):
    """One step of DDIM, linear in the network's output: x_next = keep * x_t + add * output(x_t, timestep).

    power: the a of x_0 in x_t.
    """

    timestep: int
    power: float
    keep: float
    add: float


class Inversion(NamedTuple):
    """Where a picture comes from; latents (1, C, h, w), float32 on the CPU, pixels for a model without VAE.

    x_T: DDIM started here ends near x_0, the picture's scaled latents. x_start: of the class, None without.
    eps: the initial noise, x_T = sqrt(a) x_start + sqrt(1-a) eps; x_T itself without a start.
    latent_error: how far the latents that x_T leads back to are from x_0, as a share of x_0's norm.
    pixel_rmse: the same of the pictures, in [0, 1], against the VAE's own rendering of x_0.
    """

    eps: Tensor
    x_T: Tensor
    x_0: Tensor
    x_start: Tensor | None
    latent_error: float
    pixel_rmse: float


class DdimMap:
    """G, from the first noisy latents to a picture, and back: DDIM at guidance 1, gradients included.

    One row a prompt. With gradients each step of the network, and the decoder, keeps its input alone and runs
    again on the way back, so memory is that of one step. Steps and timesteps are those of diffusers' DDIM on
    the pipeline's own schedule; x_0 is never clipped, even where the scheduler's config asks for it, since a
    clipped step cannot be inverted. power: the a of the first timestep.
    Raises ValueError on a pipeline or sampler that `invert` refuses.
    """

    def __init__(
        self, pipeline: Any, prompts: Sequence[str], *, height: int, width: int, sampler: Sampler = DDIM
    ) -> None:
        self.pipeline, self.size = pipeline, (height, width)
        scheduler = _ddim(pipeline, sampler)
        self.steps = ddim_steps(scheduler)
        self.power = self.steps[0].power
        self.told = _told(pipeline, list(prompts), scheduler, height=height, width=width)

    def __call__(self, x: Tensor, *, begin: int = 0, end: int | None = None) -> Tensor:
        """Noisy latents x (B, C, h, w) taken through steps begin to end (None: to x_0), float32."""
        x = x.to(self.pipeline._execution_device)
        for step in self.steps[begin:end]:
            x = step.keep * x + step.add * self._output(x, step.timestep)
        return x

    @torch.no_grad()
    def invert(self, x_0: Tensor, *, refinements: int = 0) -> Tensor:
        """x_T that leads to x_0 (B, C, h, w); each refinement is one more pass of the network a step."""
        x = x_0.to(self.pipeline._execution_device)
        for step in reversed(self.steps):
            # the output at x_t is wanted; that at the next x is near it, and each refinement nearer
            x_t = x
            for _ in range(1 + refinements):
                x_t = (x - step.add * self._output(x_t, step.timestep)) / step.keep
            x = x_t
        return x

    def pixels(self, x_0: Tensor) -> Tensor:
        """(B, 3, H, W) float32 pictures, [0, 1] is the range shown, of scaled latents."""
        vae = getattr(self.pipeline, "vae", None)
        if vae is None:
            return (x_0 + 1) / 2
        return (decode(vae, x_0) + 1) / 2

    def _output(self, x_t: Tensor, timestep: int) -> Tensor:
        unet = self.pipeline.unet
        told = {**self.told, "return_dict": False}
        return checkpointed(lambda x: unet(x.to(unet.dtype), timestep, **told)[0].float(), x_t)


def invert(
    pipeline: Any,
    image: Image.Image | Tensor,
    *,
    prompt: str = "",
    class_name: str | None = None,
    start: str = "mean",
    sampler: Sampler = DDIM,
    guidance_scale: float = 1.0,
    refinements: int = 0,
    height: int | None = None,
    width: int | None = None,
) -> Inversion:
    """The initial noise from which DDIM draws this picture, and how exactly it does.

    pipeline: of Stable Diffusion's form, or an unconditional one in pixels (diffusers' DDPMPipeline).
    image: fitted to height x width pixels (None: the pipeline's own size) as the catalogue was; or scaled
    latents, pixels in [-1, 1] for the latter, (C, h, w) or (1, C, h, w). prompt, class_name, start ("mean" or
    "none"): as in the pipeline's call. refinements: fixed-point iterations a step, for exactness.
    Raises ValueError on a guidance_scale other than 1, a sampler other than DDIM, a checkpoint for flow
    matching or that predicts x_0, a pipeline with a ControlNet or whose UNet takes more than latents, a
    prompt where there is no text, and on a class_name and start as the pipeline does.
    Source: METHODS 3, "Fixed object, new backgrounds".
    """
    check_guidance(guidance_scale)
    if start == "draw":
        raise ValueError("start must be mean or none for an inversion, got 'draw'")
    if refinements < 0:
        raise ValueError(f"refinements must be at least 0, got {refinements}")
    if isinstance(image, Tensor):
        factor = scale_factor(pipeline)
        height, width = (side * factor for side in image.shape[-2:])
    height, width = picture_size(pipeline, height, width)
    with for_gradients(pipeline), torch.no_grad():
        draw = DdimMap(pipeline, [prompt], height=height, width=width, sampler=sampler)
        choice = StartChoice(class_name, start)
        x_start = starts(pipeline, [prompt], choice, height=height, width=width)
        x_0 = _latents(pipeline, image, height=height, width=width)
        x_T = draw.invert(x_0, refinements=refinements)
        again, x_0 = draw(x_T), x_0.to(x_T.device)
        gap = draw.pixels(again).clamp(0, 1) - draw.pixels(x_0).clamp(0, 1)
    x_T = x_T.cpu()
    return Inversion(
        eps=noise_in(x_T, x_start, draw.power),
        x_T=x_T,
        x_0=x_0.cpu(),
        x_start=x_start,
        latent_error=float((again - x_0).norm() / x_0.norm()),
        pixel_rmse=float(gap.square().mean().sqrt()),
    )


def noise_in(x_T: Tensor, x_start: Tensor | None, power: float) -> Tensor:
    """eps of x_T = sqrt(power) x_start + sqrt(1 - power) eps; x_T itself without a start."""
    return x_T if x_start is None else (x_T - power**0.5 * x_start) / (1 - power) ** 0.5


def with_start(eps: Tensor, x_start: Tensor | None, power: float) -> Tensor:
    """x_T of the noise: the inverse of `noise_in`."""
    return eps if x_start is None else power**0.5 * x_start + (1 - power) ** 0.5 * eps


def starts(
    pipeline: Any,
    prompts: Sequence[str],
    choice: StartChoice,
    *,
    height: int,
    width: int,
    generator: torch.Generator | None = None,
) -> Tensor | None:
    """x_start of each prompt (B, C, h, w), None for pure noise; Raises as the pipeline's call."""
    distribution = getattr(pipeline, "start_distribution", None)
    check_choice(distribution, choice, latents=None)
    if distribution is None:
        return None
    return pipeline._x_start(list(prompts), 1, choice, height=height, width=width, generator=generator)


def check_guidance(guidance_scale: float) -> None:
    """Raises ValueError unless it is 1: with guidance DDIM run backwards misses the way it came."""
    if guidance_scale != 1:
        raise ValueError(f"guidance_scale must be 1 where DDIM is inverted, got {guidance_scale}")


def ddim_steps(scheduler: Any) -> list[Step]:
    """The steps of a DDIM scheduler whose timesteps are set, as diffusers takes them without clipping.

    Raises ValueError unless its network predicts epsilon or v.
    """
    kind, powers, steps = scheduler.config.prediction_type, scheduler.alphas_cumprod.double(), []
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type must be epsilon or v_prediction to be inverted, got {kind!r}")
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    for timestep in scheduler.timesteps.tolist():
        after = timestep - stride
        a, a_next = (
            float(powers[timestep]),
            float(powers[after] if after >= 0 else scheduler.final_alpha_cumprod),
        )
        signal, noise, signal_next, noise_next = a**0.5, (1 - a) ** 0.5, a_next**0.5, (1 - a_next) ** 0.5
        if kind == "epsilon":
            keep, add = signal_next / signal, noise_next - signal_next * noise / signal
        else:
            keep, add = signal_next * signal + noise_next * noise, noise_next * signal - signal_next * noise
        steps.append(Step(timestep, a, keep, add))
    return steps


@contextmanager
def for_gradients(pipeline: Any) -> Iterator[None]:
    """Freezes a pipeline's UNet and VAE, the VAE in float32 where it asks for it; undone afterwards."""
    vae = getattr(pipeline, "vae", None)
    models = [model for model in (pipeline.unet, vae) if model is not None]
    trained = [weight for model in models for weight in model.parameters() if weight.requires_grad]
    with ExitStack() as undo:
        for weight in trained:
            undo.callback(weight.requires_grad_, True)
            weight.requires_grad_(False)
        if vae is not None:
            undo.enter_context(precise(vae))
        yield


def _ddim(pipeline: Any, sampler: Sampler) -> Any:
    if sampler.scheduler != DDIM.scheduler:
        raise ValueError(
            f"sampler must be {DDIM.scheduler}, whose steps can be taken backwards, got {sampler.scheduler}"
        )
    if not hasattr(pipeline, "unet") or is_flow(pipeline.scheduler):
        kinds = "a UNet that denoises as Stable Diffusion's does"
        raise ValueError(f"pipeline must have {kinds}, got {type(pipeline).__name__}")
    if hasattr(pipeline, "controlnet"):
        raise ValueError(f"pipeline must be without a ControlNet, got {type(pipeline).__name__}")
    scheduler = build_sampler(pipeline.scheduler, sampler)
    scheduler.set_timesteps(sampler.steps)
    return scheduler


def _told(pipeline: Any, prompts: list[str], scheduler: Any, *, height: int, width: int) -> dict[str, Any]:
    """What the pipeline's own call tells its network beside latents and timestep, one row a prompt."""
    unet, vae = pipeline.unet, getattr(pipeline, "vae", None)
    if vae is None:
        if any(prompts):
            text = next(filter(None, prompts))
            raise ValueError(f"prompt must be empty for a model without text, got {text!r}")
        return {}
    channels, expected = unet.config.in_channels, vae.config.latent_channels
    if channels != expected:
        raise ValueError(f"unet must take {expected} channels, those of the latents, got {channels}")
    return told_to_unet(pipeline, prompts, scheduler, height=height, width=width, guidance_scale=1.0)


def _latents(pipeline: Any, image: Image.Image | Tensor, *, height: int, width: int) -> Tensor:
    """Scaled latents (1, C, h, w) of a picture, or of latents; pixels in [-1, 1] for a model without VAE."""
    if isinstance(image, Tensor):
        return image.detach().float().reshape(1, *image.shape[-3:])
    if getattr(pipeline, "vae", None) is None:
        return VaeImageProcessor(do_resize=False).preprocess(fit_to_frame(image, height, width))
    transform = fitted_as(pipeline)
    return encode_pictures(image, pipeline.vae, height=height, width=width, transform=transform)


def fitted_as(pipeline: Any) -> dict[str, str]:
    """How the pipeline's catalogue was fitted to the frame: "fit" and "backdrop", nothing without one."""
    distribution = getattr(pipeline, "start_distribution", None)
    transform = {} if distribution is None else distribution.config["image_transform"] or {}
    return {key: value for key, value in transform.items() if key in ("fit", "backdrop")}
