"""A gallery with a gradient: diffusers' own pixels, the decoder's gradient, differences on a linear toy."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.configuration_utils import FrozenDict
from onbrand.evaluation.gallery_rewards import ssim_diversity
from onbrand.inference import OffsetStableDiffusionPipeline
from onbrand.inference.generate import build_sampler
from onbrand.inference.skip_gradient import Fixed, decode, gallery
from onbrand.pca import Sampler, StartDistribution, vae_fingerprint

SAMPLER = Sampler("DDIMScheduler", 3)


@pytest.fixture(scope="module")
def components(tiny):
    return tiny.make_components()


@pytest.fixture
def eps(generator):
    return torch.randn(3, 4, 8, 8, generator=generator).requires_grad_()


@pytest.fixture
def offset(components, tiny):
    x = torch.randn(20, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(0)) + 1
    distribution = StartDistribution.fit(
        x,
        torch.arange(20) % 2,
        class_names=["mug", "shoe"],
        components=2,
        vae_fingerprint=vae_fingerprint(components["vae"]),
        offset_from=600,
    )
    return OffsetStableDiffusionPipeline(**components, start_distribution=distribution)


def own_call(pipe, eps, output_type, sampler=SAMPLER, **call):
    """The pipeline's own pictures from this noise."""
    noise = (
        {"noise": Fixed(eps)}
        if isinstance(pipe, OffsetStableDiffusionPipeline)
        else {"latents": eps.detach()}
    )
    kept, pipe.scheduler = pipe.scheduler, build_sampler(pipe.scheduler, sampler)
    pipe.set_progress_bar_config(disable=True)
    result = pipe(
        "a mug", num_inference_steps=sampler.steps, num_images_per_prompt=len(eps), output_type=output_type,
        **{"guidance_scale": 3.0} | noise | call,
    )  # fmt: skip
    pipe.scheduler = kept
    return torch.as_tensor(result.images)


@pytest.mark.parametrize("sampler", [SAMPLER, Sampler("EulerDiscreteScheduler", 3)])
def test_the_pixels_are_the_pipelines(components, tiny, offset, eps, sampler):
    plain = StableDiffusionPipeline(**components)
    ours = OffsetStableDiffusionPipeline(**components)
    large = StableDiffusionXLPipeline(**tiny.make_xl_components())
    for pipe, told in [(plain, {}), (ours, {}), (large, {}), (offset, {"class_name": "shoe"})]:
        scheduler = pipe.scheduler
        pixels = gallery(pipe, "a mug", eps, sampler=sampler, **told)
        assert pipe.scheduler is scheduler
        torch.testing.assert_close(pixels, own_call(pipe, eps, "pt", sampler, **told), atol=1e-5, rtol=0)
    # the start counts, and so does the class
    by_start = [
        gallery(offset, "a mug", eps, class_name=name, start=start, sampler=sampler).detach()
        for name, start in [("shoe", "mean"), ("mug", "mean"), ("mug", "none")]
    ]
    torch.testing.assert_close(by_start[2], gallery(plain, "a mug", eps, sampler=sampler).detach())
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in pairwise(by_start))


def test_further_arguments_reach_the_call(components, eps):
    pipe = StableDiffusionPipeline(**components)
    told = {"negative_prompt": "a shoe", "guidance_scale": 6.0}
    pixels = gallery(pipe, "a mug", eps, sampler=SAMPLER, **told)
    torch.testing.assert_close(pixels, own_call(pipe, eps, "pt", **told), atol=1e-5, rtol=0)
    assert not torch.allclose(pixels, gallery(pipe, "a mug", eps, sampler=SAMPLER), atol=1e-4)


def test_the_gradient_is_the_decoders(offset, eps):
    pixels = gallery(offset, "a mug", eps, class_name="mug", sampler=SAMPLER)
    (found,) = torch.autograd.grad(ssim_diversity(pixels), eps)
    z = own_call(offset, eps, "latent", class_name="mug").requires_grad_()
    decoded = offset.vae.decode(z / offset.vae.config.scaling_factor).sample
    (expected,) = torch.autograd.grad(ssim_diversity((decoded / 2 + 0.5).clamp(0, 1)), z)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_the_weights_collect_nothing(components, eps):
    pipe = StableDiffusionPipeline(**components)
    assert all(weight.requires_grad for weight in pipe.vae.parameters())
    gallery(pipe, "a mug", eps, sampler=SAMPLER).mean().backward()
    assert eps.grad.abs().max() > 0
    assert all(weight.grad is None for model in (pipe.vae, pipe.unet) for weight in model.parameters())


class LinearVae:
    """Decodes by a fixed matrix over channels; as a VAE of diffusers in all that is asked of it."""

    dtype = torch.float32

    def __init__(self, **config):
        self.config = FrozenDict({"scaling_factor": 0.5, **config})
        self.mixing = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)) / 8
        self.asked = []

    def to(self, dtype):
        self.dtype = dtype

    def decode(self, z, return_dict):
        assert not return_dict
        self.asked.append((len(z), self.dtype))
        return (torch.einsum("ij,njhw->nihw", self.mixing, z),)


class Shifting:
    """A pipeline whose sampler adds a constant: there the gradient that skips it is the true one."""

    unet = SimpleNamespace(dtype=torch.float32)
    vae_scale_factor = 4
    _execution_device = torch.device("cpu")

    def __init__(self, scheduler):
        self.vae, self.scheduler = LinearVae(), scheduler

    def set_progress_bar_config(self, **config):
        pass

    def __call__(self, prompt, *, latents, **call):
        assert not latents.requires_grad
        assert (call["height"], call["width"]) == (20, 24)
        return SimpleNamespace(images=latents + 0.1)


def test_differences_agree_where_the_sampler_shifts(tiny, generator):
    pipe = Shifting(tiny.make_scheduler())
    eps = 0.3 * torch.randn(2, 4, 5, 6, generator=generator)
    weights = torch.randn(2, 3, 5, 6, generator=generator)

    def value(eps):
        return (weights * gallery(pipe, "", eps).square()).sum()

    noise = eps.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(noise), noise)
    step = torch.randn(eps.shape, generator=generator) / 100
    difference = float(value(eps + step) - value(eps - step))
    assert abs(difference) > 1e-3
    assert float((gradient * 2 * step).sum()) == pytest.approx(difference, rel=1e-3)
    assert {rows for rows, _ in pipe.vae.asked} == {1}


def test_the_scale_of_latents_is_undone():
    z = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0)) / 4

    def expected(unscaled):
        mixed = np.einsum("ij,njhw->nihw", LinearVae().mixing.numpy(), unscaled.numpy())
        return torch.from_numpy(np.clip(mixed / 2 + 0.5, 0, 1))

    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    spread = torch.tensor(std)[:, None, None] * z / 0.5 + torch.tensor(mean)[:, None, None]
    torch.testing.assert_close(decode(LinearVae(), z), expected(z / 0.5))
    torch.testing.assert_close(decode(LinearVae(shift_factor=0.3), z), expected(z / 0.5 + 0.3))
    torch.testing.assert_close(decode(LinearVae(latents_mean=mean, latents_std=std), z), expected(spread))
    assert expected(spread).min() > 0


def test_half_precision_decodes_in_full_and_goes_back():
    vae, z = LinearVae(), torch.zeros(2, 4, 5, 6, requires_grad=True)
    vae.dtype = torch.float16
    pixels = decode(vae, z)
    assert vae.dtype == torch.float16
    pixels.sum().backward()
    assert vae.dtype == torch.float16
    assert vae.asked == [(1, torch.float32)] * 4


def test_fixed_noise_is_itself(eps):
    drawn = Fixed(eps.double()).draw(3, (4, 8, 8), None)
    assert torch.equal(drawn, eps.detach())
    assert drawn.dtype == torch.float32
    assert not drawn.requires_grad
    drawn.zero_()
    assert eps.abs().max() > 0
    with pytest.raises(
        ValueError, match=r"^fixed noise must be shaped \(2, 4, 8, 8\) as the.*got \(3, 4, 8, 8\)$"
    ):
        Fixed(eps).draw(2, (4, 8, 8), None)


def test_what_makes_no_gallery_is_refused(components, eps):
    with pytest.raises(ValueError, match=r"^eps must be of shape \(N, C, h, w\), got \(4, 8, 8\)$"):
        gallery(StableDiffusionPipeline(**components), "a mug", eps[0])
    with pytest.raises(ValueError, match=r"^class_name must be None for StableDiffusionPipeline, got 'mug'$"):
        gallery(StableDiffusionPipeline(**components), "a mug", eps, class_name="mug")
