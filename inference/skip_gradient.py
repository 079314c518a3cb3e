"""A gallery drawn so that a gradient reaches its noise: straight past the sampler, through the decoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..pca import Sampler
from .generate import NO_CONFIG, build_sampler, sampling_with
from .mixin import OffsetPipelineMixin
from .picture import precise
from .vae import unscaled


@dataclass(frozen=True, eq=False)
class Fixed:
    """An initializer that returns this noise (N, C, h, w), as float32 on the CPU, whatever the generator."""

    eps: Tensor

    def draw(self, num_images: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """The noise. Raises ValueError on another number of images or another shape than its own."""
        if tuple(self.eps.shape) != (num_images, *shape):
            raise ValueError(
                f"fixed noise must be shaped {(num_images, *shape)} as the call asks for, "
                f"got {tuple(self.eps.shape)}"
            )
        return self.eps.detach().to("cpu", torch.float32, copy=True)


def gallery(
    pipeline: Any,
    prompt: str,
    eps: Tensor,
    *,
    class_name: str | None = None,
    start: str = "mean",
    sampler: Sampler = Sampler("DDIMScheduler", 20),
    scheduler_config: Mapping[str, Any] = NO_CONFIG,
    guidance_scale: float = 3.0,
    **call: Any,
) -> Tensor:
    """Pixels (N, 3, H, W) in [0, 1], float32, of one prompt's gallery, with a gradient for its noise.

    The sampler runs without one and ends at z_final; decoded is z_final + eps - sg(eps), sg for a constant,
    so that the gradient is the decoder's alone and memory that of one picture.
    pipeline: ours, or diffusers' own of Stable Diffusion's form; eps: (N, C, h, w), its size is the
    pictures'. class_name, start: as in our pipelines' call; sampler, scheduler_config: as in `generate`;
    call: further arguments of the pipeline, among them the generator of samplers that add noise.
    Raises ValueError on an eps of another shape or, as the pipeline does, on its arguments.
    Source: METHODS 3, "Learned couplings".
    """
    if eps.ndim != 4:
        raise ValueError(f"eps must be of shape (N, C, h, w), got {tuple(eps.shape)}")
    noise = eps.detach().float().cpu()
    factor = pipeline.vae_scale_factor
    call |= {"height": eps.shape[2] * factor, "width": eps.shape[3] * factor}
    if isinstance(pipeline, OffsetPipelineMixin):
        call |= {"noise": Fixed(noise), "class_name": class_name}
        if pipeline.start_distribution is not None:
            call["start"] = start
    elif class_name is not None:
        raise ValueError(f"class_name must be None for {type(pipeline).__name__}, got {class_name!r}")
    else:
        call["latents"] = noise.to(pipeline._execution_device, pipeline.unet.dtype)
    with sampling_with(pipeline, build_sampler(pipeline.scheduler, sampler, scheduler_config)):
        z_final = pipeline(
            prompt,
            num_inference_steps=sampler.steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=len(eps),
            output_type="latent",
            **call,
        ).images
    # the difference is zero: written so, the value is z_final to the bit
    moved = eps.to(z_final.device, torch.float32)
    return decode(pipeline.vae, z_final.float() + (moved - moved.detach()))


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) in [0, 1], float32 and differentiable, of scaled latents (N, C, h, w).

    Picture by picture, and again for the gradient; a VAE in half precision works in float32 meanwhile, where
    neither its activations nor small gradients are lost.
    """
    decoded = _OneByOne.apply(unscaled(vae, latents), vae)
    return (decoded / 2 + 0.5).clamp(0, 1)


class _OneByOne(torch.autograd.Function):
    """vae.decode of each picture alone, its activations made again on the way back."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, vae: Any) -> Tensor:
        ctx.save_for_backward(latents)
        ctx.vae = vae
        with precise(vae, always=True):
            return torch.cat([_decode_one(vae, z) for z in latents.split(1)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None]:
        (latents,) = ctx.saved_tensors
        found = []
        with precise(ctx.vae, always=True), torch.enable_grad():
            for z, gradient in zip(latents.split(1), gradients.split(1), strict=True):
                z = z.detach().requires_grad_()
                # for z alone: the VAE's own weights collect no gradient, whether they are frozen or not
                found += torch.autograd.grad(_decode_one(ctx.vae, z), z, gradient)
        return torch.cat(found), None


def _decode_one(vae: Any, z: Tensor) -> Tensor:
    decoded: Tensor = vae.decode(z, return_dict=False)[0]
    return decoded
