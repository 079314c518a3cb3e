"""DDIM backwards: against diffusers' own DDIM forwards, with a start, and what it refuses."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DModel,
)
from onbrand.inference import (
    OffsetStableDiffusionControlNetPipeline,
    OffsetStableDiffusionPipeline,
    load_pipeline,
)
from onbrand.inference.inversion import DdimMap, for_gradients, invert
from onbrand.inference.picture import fit_to_frame
from onbrand.inference.size import picture_size
from onbrand.inference.start import start_latents
from onbrand.pca import Sampler, StartDistribution
from onbrand.train.models import TINY_BASE
from PIL import Image

FRAME = {"height": 32, "width": 32}


def picture(seed=0, size=32):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def pixel_unet(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        ).eval()


def pixel_pipeline():
    return DDPMPipeline(pixel_unet(), DDPMScheduler())


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(tiny):
    return quiet(OffsetStableDiffusionPipeline(**tiny.make_components()))


def with_distribution(tiny, pipeline, generator):
    latents = 1 + torch.randn(8, *tiny.LATENT_SHAPE, generator=generator)
    ids = torch.arange(8) % 2
    distribution = StartDistribution.fit(
        latents, ids, class_names=["mug", "hat"], components=1, offset_from=901
    )
    pipeline.register_modules(start_distribution=distribution)
    return distribution


def forms(tiny):
    """Pipelines of diffusers' own, by form of checkpoint."""
    trailing = tiny.make_scheduler(timestep_spacing="trailing", set_alpha_to_one=True)
    return {
        "epsilon": lambda: StableDiffusionPipeline(**tiny.make_components()),
        "v": lambda: StableDiffusionPipeline(**tiny.make_v_components()),
        "trailing": lambda: StableDiffusionPipeline(**tiny.make_components() | {"scheduler": trailing}),
        "xl": lambda: StableDiffusionXLPipeline(**tiny.make_xl_components()),
    }


@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("form", ["epsilon", "v", "trailing", "xl"])
def test_forwards_is_what_diffusers_draws(tiny, generator, form, steps):
    pipeline = quiet(forms(tiny)[form]())
    x_T = torch.randn(2, *tiny.LATENT_SHAPE, generator=generator)
    sampler, prompts = Sampler("DDIMScheduler", steps), ["a mug", "a hat"]
    expected = pipeline(
        prompts, latents=x_T, num_inference_steps=steps, guidance_scale=1.0, output_type="latent", **FRAME
    ).images
    with torch.no_grad():
        draw = DdimMap(pipeline, prompts, **FRAME, sampler=sampler)
        torch.testing.assert_close(draw(x_T), expected, atol=1e-5, rtol=1e-5)
        shown = pipeline.vae.decode(expected / pipeline.vae.config.scaling_factor).sample
        torch.testing.assert_close(draw.pixels(expected), (shown + 1) / 2)


def test_forwards_in_pixels_is_what_diffusers_draws(generator):
    unet, scheduler = pixel_unet(), DDIMScheduler(clip_sample=False)
    x_T = torch.randn(1, 3, 16, 16, generator=generator)
    expected = x_T
    scheduler.set_timesteps(20)
    with torch.no_grad():
        for t in scheduler.timesteps:
            expected = scheduler.step(unet(expected, t).sample, t, expected).prev_sample
        draw = DdimMap(DDIMPipeline(unet, scheduler), [""], height=16, width=16)
        torch.testing.assert_close(draw(x_T), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(draw.pixels(expected), expected / 2 + 0.5)


def test_a_part_of_the_steps(tiny, pipeline, generator):
    x = torch.randn(1, *tiny.LATENT_SHAPE, generator=generator)
    with torch.no_grad():
        draw = DdimMap(pipeline, [""], **FRAME)
        assert torch.equal(draw(draw(x, end=8), begin=8), draw(x))
        assert not torch.equal(draw(x, begin=8), draw(x))


@pytest.mark.parametrize("form", ["epsilon", "v", "xl"])
def test_a_drawn_picture_leads_back_to_its_noise(tiny, generator, form):
    pipeline = quiet(forms(tiny)[form]())
    x_T = torch.randn(1, *tiny.LATENT_SHAPE, generator=generator)
    with torch.no_grad():
        x_0 = DdimMap(pipeline, ["a mug"], **FRAME)(x_T)
    found = invert(pipeline, x_0, prompt="a mug", refinements=12)
    torch.testing.assert_close(found.eps, x_T, atol=1e-4, rtol=1e-4)
    assert found.x_start is None
    assert torch.equal(found.eps, found.x_T)


def test_refinements_and_steps_bring_a_trained_model_nearer():
    pipeline = quiet(load_pipeline(TINY_BASE, plain=True))
    call = {"image": picture(size=64), "prompt": "a mug"}
    found = invert(pipeline, **call, sampler=Sampler("DDIMScheduler", 10))
    refined = invert(pipeline, **call, sampler=Sampler("DDIMScheduler", 10), refinements=4)
    finer = invert(pipeline, **call, sampler=Sampler("DDIMScheduler", 40))
    assert found.latent_error < 0.2
    assert refined.latent_error < found.latent_error / 2
    assert finer.latent_error < found.latent_error / 1.5
    assert refined.pixel_rmse < found.pixel_rmse < 0.03


def test_the_errors_are_those_of_drawing_it_again(pipeline):
    found = invert(pipeline, picture(), prompt="a mug", sampler=Sampler("DDIMScheduler", 5))
    call = {"num_inference_steps": 5, "guidance_scale": 1.0, "latents": found.x_T}
    again = pipeline("a mug", output_type="latent", **call).images
    error = float((again - found.x_0).norm() / found.x_0.norm())
    assert found.latent_error == pytest.approx(error, rel=1e-3)
    with torch.no_grad():
        shown = pipeline.vae.decode(found.x_0 / pipeline.vae.config.scaling_factor).sample
    shown = (shown[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    drawn = pipeline("a mug", output_type="np", **call).images[0]
    assert found.pixel_rmse == pytest.approx(np.sqrt(np.square(drawn - shown).mean()), rel=1e-3)


def test_the_noise_beside_a_start_leads_to_the_same_latents(tiny, pipeline, generator):
    distribution = with_distribution(tiny, pipeline, generator)
    found = invert(pipeline, picture(), prompt="a mug", class_name="hat")
    plain = invert(pipeline, picture(), prompt="a mug", start="none")
    assert torch.equal(found.x_T, plain.x_T)
    assert plain.x_start is None
    torch.testing.assert_close(found.x_start[0], distribution.mean[1])
    assert not torch.allclose(found.eps, plain.eps, atol=0.01)
    first = start_latents(pipeline.scheduler, 20, found.x_start, found.eps)
    torch.testing.assert_close(first, found.x_T, atol=1e-5, rtol=1e-5)


def test_an_unconditional_model_in_pixels(generator):
    pipeline = quiet(pixel_pipeline())
    assert picture_size(pipeline) == (16, 16)
    found = invert(pipeline, picture(size=24))
    shown = torch.from_numpy(np.array(fit_to_frame(picture(size=24), 16, 16)))
    torch.testing.assert_close((found.x_0[0] + 1) / 2, shown.permute(2, 0, 1) / 255)
    x_T = torch.randn(1, 3, 16, 16, generator=generator)
    with torch.no_grad():
        x_0 = DdimMap(pipeline, [""], height=16, width=16)(x_T)
    back = invert(pipeline, x_0, refinements=16)
    torch.testing.assert_close(back.eps, x_T, atol=1e-3, rtol=1e-3)
    assert back.pixel_rmse < 1e-3


def test_the_gradient_is_that_of_finite_differences(tiny, pipeline, generator):
    x = torch.randn(1, *tiny.LATENT_SHAPE, generator=generator)
    aside = torch.randn(x.shape, generator=generator)
    with for_gradients(pipeline):
        draw = DdimMap(pipeline, ["a mug"], **FRAME, sampler=Sampler("DDIMScheduler", 4))

        def power(x):
            return draw.pixels(draw(x)).square().sum()

        x.requires_grad_()
        (slope,) = torch.autograd.grad(power(x), x)
        with torch.no_grad():
            step = 1e-2
            expected = (power(x + step * aside) - power(x - step * aside)) / (2 * step)
    assert float((slope * aside).sum()) == pytest.approx(float(expected), rel=0.01)


def test_only_one_step_is_kept_for_the_gradient(tiny, pipeline, generator):
    """What is saved between forward and backward passes does not grow with the network."""
    kept = []

    def saved(steps):
        kept.clear()
        x = torch.randn(1, *tiny.LATENT_SHAPE, generator=generator).requires_grad_()
        draw = DdimMap(pipeline, [""], **FRAME, sampler=Sampler("DDIMScheduler", steps))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            draw(x)
        return sum(kept)

    with for_gradients(pipeline):
        assert saved(8) - saved(4) <= 4 * 2 * 256


def test_weights_are_frozen_for_the_time_being(tiny, pipeline):
    first, *rest = pipeline.unet.parameters()
    first.requires_grad_(False)
    with for_gradients(pipeline):
        assert not any(weight.requires_grad for weight in pipeline.unet.parameters())
        assert not any(weight.requires_grad for weight in pipeline.vae.parameters())
    assert not first.requires_grad
    assert all(weight.requires_grad for weight in [*rest, *pipeline.vae.parameters()])


@pytest.mark.parametrize("asks", [True, False])
def test_a_vae_that_asks_for_it_works_in_float32(tiny, asks):
    components = tiny.make_components() | {"vae": tiny.make_vae(force_upcast=asks).half()}
    pipeline = StableDiffusionPipeline(**components)
    with for_gradients(pipeline):
        assert pipeline.vae.dtype == (torch.float32 if asks else torch.float16)
    assert pipeline.vae.dtype == torch.float16


def test_the_pipeline_is_left_as_it_was(pipeline):
    scheduler, timesteps = pipeline.scheduler, pipeline.scheduler.timesteps.clone()
    invert(pipeline, picture(), prompt="a mug")
    assert pipeline.scheduler is scheduler
    assert torch.equal(scheduler.timesteps, timesteps)
    assert not pipeline.unet._forward_pre_hooks
    assert all(weight.grad is None for weight in pipeline.unet.parameters())


def test_what_it_refuses(tiny, pipeline):
    with pytest.raises(ValueError, match=r"guidance_scale must be 1 where DDIM is inverted, got 3\.0"):
        invert(pipeline, picture(), guidance_scale=3.0)
    with pytest.raises(ValueError, match=r"sampler must be DDIMScheduler, whose .* got EulerAncestral"):
        invert(pipeline, picture(), sampler=Sampler("EulerAncestralDiscreteScheduler", 20))
    with pytest.raises(ValueError, match="start must be mean or none for an inversion, got 'draw'"):
        invert(pipeline, picture(), start="draw")
    with pytest.raises(ValueError, match="refinements must be at least 0, got -1"):
        invert(pipeline, picture(), refinements=-1)
    with pytest.raises(ValueError, match="class_name must come with a start distribution"):
        invert(pipeline, picture(), class_name="mug")
    with pytest.raises(ValueError, match="prompt must be empty for a model without text, got 'a mug'"):
        invert(pixel_pipeline(), picture(), prompt="a mug")


def test_models_it_refuses(tiny, pipeline):
    components = tiny.make_components()
    controlled = OffsetStableDiffusionControlNetPipeline(
        **components, controlnet=tiny.make_controlnet(components["unet"])
    )
    with pytest.raises(ValueError, match="pipeline must be without a ControlNet, got OffsetStableDiffusionC"):
        invert(controlled, picture())
    with pytest.raises(ValueError, match="unet must take 4 channels, those of the latents, got 9"):
        invert(StableDiffusionPipeline(**components | {"unet": tiny.make_unet(in_channels=9)}), picture())
    pipeline.scheduler = tiny.make_scheduler(prediction_type="sample")
    with pytest.raises(ValueError, match=r"prediction_type must be epsilon or v_prediction .* got 'sample'"):
        invert(pipeline, picture())
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="pipeline must have a UNet that denoises as Stable Diffusion's"):
        invert(pipeline, picture())
