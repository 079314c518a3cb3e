"""Pictures from measurements of them: parts, small copies, blurred ones; by diffusion posterior sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..evaluation.pixels import Mask, to_mask
from ..pca import Sampler
from .choice import StartChoice
from .generate import build_sampler
from .inversion import for_gradients, starts
from .noise import draw_noise
from .size import picture_size
from .start import is_flow, start_latents
from .unet_call import told_to_unet
from .vae import checkpointed, decode

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Inpaint:
    """Keeps the pixels where known, (H, W) of truth values or a picture with them lighter; 0 elsewhere."""

    known: Mask

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in, the same shape out. Raises ValueError on a mask of another size."""
        height, width = pixels.shape[-2:]
        return pixels * torch.from_numpy(to_mask(self.known, (height, width))).to(pixels)


@dataclass(frozen=True)
class Downsample:
    """The mean of each square of factor x factor pixels, for super-resolution."""

    factor: int

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3, H / factor, W / factor). Raises ValueError where it does not divide them."""
        height, width = pixels.shape[-2:]
        if self.factor < 1 or height % self.factor or width % self.factor:
            raise ValueError(f"factor must divide height and width {height} x {width}, got {self.factor}")
        return functional.avg_pool2d(pixels, self.factor)


@dataclass(frozen=True)
class Blur:
    """A Gaussian blur of this sigma in pixels, cut off at three sigmas, edges mirrored."""

    sigma: float

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in, the same shape out. Raises ValueError on a sigma that is 0 or too large."""
        reach = math.ceil(3 * self.sigma)
        most = (min(pixels.shape[-2:]) - 1) / 3
        if not self.sigma > 0 or reach >= min(pixels.shape[-2:]):
            raise ValueError(f"sigma must be positive and at most {most:.3g} for this size, got {self.sigma}")
        at = torch.arange(-reach, reach + 1, dtype=torch.float64)
        weights = (-(at**2) / (2 * self.sigma**2)).exp()
        weights = (weights / weights.sum()).to(pixels)
        channels = pixels.shape[1]
        padded = functional.pad(pixels, [reach] * 4, mode="reflect")
        for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
            padded = functional.conv2d(
                padded, weights.view(shape).expand(channels, *[-1] * 3), groups=channels
            )
        return padded


class Solution(NamedTuple):
    """A picture that fits a measurement.

    latents: (1, C, h, w) scaled latents; pixels: (1, 3, H, W), [-1, 1] is the range shown; residuals: before
    each step and at the end, the root mean square of measurement - operator(estimate); all float32, the CPU.
    """

    latents: Tensor
    pixels: Tensor
    residuals: Tensor

    @property
    def image(self) -> Image.Image:
        """The picture."""
        return VaeImageProcessor().postprocess(self.pixels)[0]


def solve(
    pipeline: Any,
    measurement: Tensor,
    operator: Operator,
    *,
    prompt: str = "",
    negative_prompt: str | None = None,
    class_name: str | None = None,
    start: str = "mean",
    steps: int = 100,
    spacing: str | None = None,
    step_size: float = 0.3,
    normalised: bool = True,
    guidance_scale: float = 1.0,
    eps: Tensor | None = None,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Solution:
    """A picture whose operator(pixels) is near the measurement, by DDIM with a gradient step after each step.

    operator: pixels (1, 3, H, W) in [-1, 1] to a measurement, differentiable: `Inpaint`, `Downsample`, `Blur`
    or any function; measurement: what it gives of the picture sought. step_size, normalised: as
    `posterior_step` takes them; with a step_size of 0 this is the pipeline's own DDIM picture.
    On the tiny base 0.3, normalised, suits inpainting and blur, and 1 what reduces a picture fourfold.
    pipeline: of Stable Diffusion's form or SDXL's, ours or diffusers' own; prompt, negative_prompt,
    class_name, start: as in its call. eps: initial noise (1, C, h, w), of the seed if None. advance(1) is
    called after every step.
    Raises ValueError on a measurement or eps of another shape than asked for, on settings out of range, a
    pipeline with a ControlNet, for flow matching or whose UNet takes more than latents, a network without
    gradient, and on class_name and start as the pipeline does. Source: METHODS 6, "Inverse problems".
    """
    _check(pipeline, steps=steps, step_size=step_size)
    height, width = picture_size(pipeline, height, width)
    expected = tuple(operator(torch.zeros(1, 3, height, width)).shape)
    if tuple(measurement.shape) != expected:
        raise ValueError(
            f"measurement must be of shape {expected} as the operator's, got {tuple(measurement.shape)}"
        )
    scheduler = build_sampler(pipeline.scheduler, Sampler("DDIMScheduler", steps, spacing))
    scheduler.set_timesteps(steps)
    device, size = pipeline._execution_device, {"height": height, "width": width}
    generator = torch.Generator().manual_seed(seed)
    factor = pipeline.vae_scale_factor
    shape = (pipeline.vae.config.latent_channels, height // factor, width // factor)
    if eps is None:
        eps = draw_noise(1, 1, shape, generator)
    elif tuple(eps.shape) != (1, *shape):
        raise ValueError(f"eps must be of shape {(1, *shape)} as the latents, got {tuple(eps.shape)}")
    with for_gradients(pipeline):
        begun = starts(pipeline, [prompt], StartChoice(class_name, start), **size, generator=generator)
        x = start_latents(scheduler, steps, begun, eps.float()).to(device) * scheduler.init_noise_sigma
        predict = _Guided(pipeline, scheduler, prompt, negative_prompt, guidance_scale, **size)
        residuals = []
        for timestep in scheduler.timesteps:
            x, residual = posterior_step(
                x,
                timestep,
                scheduler=scheduler,
                predict=predict,
                measure=lambda x_0: operator(decode(pipeline.vae, x_0)),
                measurement=measurement.to(device, torch.float32),
                step_size=step_size,
                normalised=normalised,
            )
            residuals.append(residual)
            advance(1)
        with torch.no_grad():
            pixels = decode(pipeline.vae, x)
            residuals.append(_rms(measurement.to(device) - operator(pixels)))
    return Solution(x.cpu(), pixels.cpu(), torch.stack(residuals).cpu())


def posterior_step(
    x: Tensor,
    timestep: Any,
    *,
    scheduler: Any,
    predict: Callable[[Tensor, Any], Tensor],
    measure: Operator,
    measurement: Tensor,
    step_size: float,
    normalised: bool = True,
) -> tuple[Tensor, Tensor]:
    """x (1, C, h, w) at the next timestep, and the root mean square of the residual at this one.

    The scheduler's own step, less xi times the gradient of ||measurement - measure(x_0)||^2 with respect to
    x, x_0 the estimate at x. xi is step_size, or, normalised, step_size / ||measurement - measure(x_0)||.
    predict: x and timestep to the network's output. Raises ValueError on an output without gradient.
    Source: METHODS 6, "Inverse problems".
    """
    if not step_size:
        with torch.no_grad():
            step = scheduler.step(predict(x, timestep), timestep, x)
            return step.prev_sample, _rms(measurement - measure(step.pred_original_sample))
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        output = predict(x, timestep)
        if not output.requires_grad:
            raise ValueError(
                "unet must be differentiable in its noisy latents, got an output without gradient"
            )
        step = scheduler.step(output, timestep, x)
        gap = measurement - measure(step.pred_original_sample)
        distance = gap.square().sum()
        (gradient,) = torch.autograd.grad(distance, x)
    xi = step_size / distance.detach().sqrt().clamp(min=1e-12) if normalised else step_size
    return step.prev_sample.detach() - xi * gradient, _rms(gap.detach())


class _Guided:
    """The network's output for one prompt, float32, with guidance as in the pipeline's own call."""

    def __init__(
        self,
        pipeline: Any,
        scheduler: Any,
        prompt: str,
        negative_prompt: str | None,
        guidance_scale: float,
        **size: int,
    ) -> None:
        self.unet, self.guidance_scale = pipeline.unet, guidance_scale
        told = told_to_unet(
            pipeline,
            prompt,
            scheduler,
            **size,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
        )
        self.told = {**told, "return_dict": False}

    def __call__(self, x: Tensor, timestep: Any) -> Tensor:
        seen = torch.cat([x] * len(self.told["encoder_hidden_states"])).to(self.unet.dtype)
        output = checkpointed(lambda noisy: self.unet(noisy, timestep, **self.told)[0].float(), seen)
        if len(output) == 1:
            return output
        without, text = output.chunk(2)
        return without + self.guidance_scale * (text - without)


def _rms(gap: Tensor) -> Tensor:
    return gap.square().mean().sqrt()


def _check(pipeline: Any, *, steps: int, step_size: float) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= step_size < math.inf:
        raise ValueError(f"step_size must be at least 0, got {step_size}")
    if not (hasattr(pipeline, "unet") and hasattr(pipeline, "vae")) or is_flow(pipeline.scheduler):
        kinds = "a UNet that denoises as Stable Diffusion's does and a VAE"
        raise ValueError(f"pipeline must have {kinds}, got {type(pipeline).__name__}")
    if hasattr(pipeline, "controlnet"):
        raise ValueError(f"pipeline must be without a ControlNet, got {type(pipeline).__name__}")
    channels, expected = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if channels != expected:
        raise ValueError(f"unet must take {expected} channels, those of the latents, got {channels}")
