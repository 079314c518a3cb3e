"""Pictures from measurements: the operators, the gradient of one step, and whole runs on small pipelines."""

from pathlib import Path

import numpy as np
import onbrand
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from onbrand.inference import OffsetStableDiffusionControlNetPipeline, OffsetStableDiffusionPipeline
from onbrand.inference.closed_form import OptimalDenoiser
from onbrand.inference.inverse_problems import Blur, Downsample, Inpaint, posterior_step, solve
from onbrand.inference.vae import decode
from onbrand.pca import StartDistribution
from PIL import Image
from scipy.ndimage import gaussian_filter

BASE = Path(onbrand.__file__).parent / "assets" / "tiny-base"
SIDE = 32
HOLE = torch.ones(SIDE, SIDE)
HOLE[8:24, 12:20] = 0
OPERATORS = {"inpaint": Inpaint(HOLE), "downsample": Downsample(4), "blur": Blur(2.0)}


@pytest.fixture
def pixels(generator):
    return 2 * torch.rand(1, 3, SIDE, SIDE, generator=generator) - 1


@pytest.fixture
def pipeline(tiny):
    return quiet(OffsetStableDiffusionPipeline(**tiny.make_components()))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def with_start(tiny, pipeline, generator):
    latents = 1 + torch.randn(8, *tiny.LATENT_SHAPE, generator=generator)
    distribution = StartDistribution.fit(
        latents, torch.arange(8) % 2, class_names=["mug", "hat"], components=2, offset_from=801
    )
    pipeline.register_modules(start_distribution=distribution)
    return pipeline


def test_blur_is_scipys(pixels):
    for sigma in (1.0, 2.0):
        expected = gaussian_filter(
            pixels.double().numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=3 - 0.4 / sigma
        )
        np.testing.assert_allclose(Blur(sigma)(pixels.double()).numpy(), expected, atol=1e-12)
    assert Blur(0.5)(pixels).shape == pixels.shape


def test_downsampling_is_a_mean_of_squares(pixels):
    expected = [
        np.asarray(Image.fromarray(channel.numpy()).resize((8, 8), Image.Resampling.BOX))
        for channel in pixels[0]
    ]
    np.testing.assert_allclose(Downsample(4)(pixels)[0], np.stack(expected), atol=1e-6)


def test_inpainting_keeps_what_is_known(pixels):
    kept = Inpaint(HOLE)(pixels)
    assert torch.equal(kept[..., 0:8, :], pixels[..., 0:8, :])
    assert not kept[..., 8:24, 12:20].any()
    as_picture = Image.fromarray((HOLE.numpy() * 255).astype(np.uint8))
    assert torch.equal(Inpaint(as_picture)(pixels), kept)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_linear(name, pixels):
    operator, flipped = OPERATORS[name], pixels.flip(2)
    both = operator(2 * pixels - 3 * flipped)
    torch.testing.assert_close(both, 2 * operator(pixels) - 3 * operator(flipped), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_gradient_of_a_linear_model_is_the_one_on_paper(tiny, generator, kind, normalised):
    scheduler = tiny.make_scheduler(prediction_type=kind)
    scheduler.set_timesteps(20)
    t = int(scheduler.timesteps[3])
    a = float(scheduler.alphas_cumprod[t])
    draw = {"generator": generator, "dtype": torch.float64}
    x, z = torch.randn(1, 4, 1, 1, **draw), torch.randn(1, 3, **draw)
    network, operator = torch.randn(4, 4, **draw), torch.randn(3, 4, **draw)

    def predict(noisy, timestep):
        assert timestep == t
        return (network @ noisy.flatten()).view(noisy.shape)

    def measure(x_0):
        return (operator @ x_0.flatten())[None]

    step = {"scheduler": scheduler, "predict": predict, "measure": measure, "measurement": z}
    plain, residual = posterior_step(x, t, **step, step_size=0.0)
    moved, same = posterior_step(x, t, **step, step_size=0.25, normalised=normalised)
    one = torch.eye(4, dtype=torch.float64)
    if kind == "epsilon":
        estimate = (one - (1 - a) ** 0.5 * network) / a**0.5
    else:
        estimate = a**0.5 * one - (1 - a) ** 0.5 * network
    gap = z[0] - operator @ estimate @ x.flatten()
    gradient = -2 * (operator @ estimate).T @ gap
    xi = 0.25 / float(gap.norm()) if normalised else 0.25
    torch.testing.assert_close((plain - moved).flatten(), xi * gradient, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(residual, gap.square().mean().sqrt(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(residual, same)
    step["predict"] = lambda noisy, timestep: predict(noisy, timestep).detach()
    with pytest.raises(ValueError, match="unet must be differentiable in its noisy latents, got an output"):
        posterior_step(x, t, **step, step_size=0.25)


def test_the_gradient_goes_through_network_and_decoder(tiny, pipeline, generator):
    """Against finite differences of the distance, along the gradient and along another direction."""
    scheduler = tiny.make_scheduler()
    scheduler.set_timesteps(20)
    t, operator = scheduler.timesteps[10], OPERATORS["blur"]
    text = torch.randn(1, tiny.TOKENS, tiny.TEXT_WIDTH, generator=generator)
    step = {
        "scheduler": scheduler,
        "predict": lambda x, t: pipeline.unet(x, t, encoder_hidden_states=text).sample,
        "measure": lambda x_0: operator(decode(pipeline.vae, x_0)),
        "measurement": torch.randn(1, 3, SIDE, SIDE, generator=generator),
    }
    x = torch.randn(1, *tiny.LATENT_SHAPE, generator=generator)

    def distance(x):
        return float(posterior_step(x, t, **step, step_size=0.0)[1]) ** 2 * step["measurement"].numel()

    plain, _ = posterior_step(x, t, **step, step_size=0.0)
    moved, _ = posterior_step(x, t, **step, step_size=1.0, normalised=False)
    gradient = plain - moved
    other = gradient.roll(1, dims=3)
    for direction in (gradient, gradient + other):
        direction = direction / direction.norm()
        found = (distance(x + 0.02 * direction) - distance(x - 0.02 * direction)) / 0.04
        assert found == pytest.approx(float((gradient * direction).sum()), rel=0.02)


FORMS = {
    "epsilon": lambda tiny: StableDiffusionPipeline(**tiny.make_components()),
    "v": lambda tiny: StableDiffusionPipeline(**tiny.make_v_components()),
    "xl": lambda tiny: StableDiffusionXLPipeline(**tiny.make_xl_components()),
}


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("form", FORMS)
def test_without_a_step_it_is_the_pipelines_own_picture(tiny, pixels, form, guidance):
    pipeline = quiet(FORMS[form](tiny))
    call = {"prompt": "a mug", "negative_prompt": "a hat", "guidance_scale": guidance}
    own = pipeline(
        **call, num_inference_steps=7, generator=torch.Generator().manual_seed(3), output_type="pt"
    ).images
    found = solve(pipeline, pixels, lambda x: x, **call, steps=7, step_size=0.0, seed=3)
    torch.testing.assert_close((found.pixels / 2 + 0.5).clamp(0, 1), own, atol=1e-5, rtol=1e-5)
    assert len(found.residuals) == 8
    assert float(found.residuals[-1]) == pytest.approx(float((pixels - found.pixels).square().mean().sqrt()))


@pytest.mark.parametrize("start", ["mean", "draw", "none"])
def test_it_begins_at_the_start(tiny, pipeline, generator, start):
    with_start(tiny, pipeline, generator)
    call = {"class_name": "hat", "start": start, "guidance_scale": 3.0}
    own = pipeline(
        "a mug",
        **call,
        num_inference_steps=5,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    measurement = torch.zeros(1, 3, 8, 8)
    settings = {"prompt": "a mug", "steps": 5, "step_size": 0.0}
    found = solve(pipeline, measurement, Downsample(4), **settings, **call, seed=3)
    torch.testing.assert_close(found.latents, own, atol=1e-5, rtol=1e-5)
    if start == "none":
        eps = torch.randn(1, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(3))
        same = solve(pipeline, measurement, Downsample(4), **settings, **call, eps=eps, seed=8)
        assert torch.equal(same.latents, found.latents)


@pytest.fixture(scope="module")
def trained():
    """The tiny base, and a picture of its own, 64 x 64: what a random network could not find."""
    pipeline = quiet(OffsetStableDiffusionPipeline.from_pretrained(BASE))
    seed = {"generator": torch.Generator().manual_seed(5), "num_inference_steps": 20, "guidance_scale": 3.0}
    return pipeline, 2 * pipeline("a red mug", **seed, output_type="pt").images - 1


@pytest.mark.parametrize(("name", "step_size"), [("inpaint", 0.3), ("downsample", 1.0), ("blur", 0.3)])
def test_a_measured_picture_is_found(trained, name, step_size):
    pipeline, sought = trained
    operator = Inpaint(HOLE.repeat(2, 2)) if name == "inpaint" else OPERATORS[name]
    measurement, steps = operator(sought), []
    call = {"prompt": "a red mug", "steps": 12}
    left_alone = solve(pipeline, measurement, operator, **call, step_size=0.0)
    found = solve(pipeline, measurement, operator, **call, step_size=step_size, advance=steps.append)
    assert sum(steps) == 12
    for before in (left_alone.residuals[-1], found.residuals[0]):
        assert float(found.residuals[-1]) < 0.3 * float(before)
    gap, missed = ((solution.pixels - sought).square().mean() for solution in (found, left_alone))
    assert gap < 0.1 * missed
    assert found.image.size == (64, 64)


def test_it_leaves_the_pipeline_as_it_was(tiny, pipeline, pixels):
    scheduler, weights = (
        pipeline.scheduler,
        list(pipeline.unet.parameters()) + list(pipeline.vae.parameters()),
    )
    frozen = weights[0].requires_grad_(False)
    solve(pipeline, pixels, lambda x: x, prompt="a mug", steps=2)
    assert pipeline.scheduler is scheduler
    assert [weight for weight in weights if not weight.requires_grad] == [frozen]
    assert all(weight.grad is None for weight in weights)
    assert not pipeline.unet._forward_pre_hooks


def controlled(tiny):
    parts = tiny.make_components()
    return OffsetStableDiffusionControlNetPipeline(**parts, controlnet=tiny.make_controlnet(parts["unet"]))


def flowing(tiny):
    return StableDiffusionPipeline(
        **tiny.make_components() | {"scheduler": FlowMatchEulerDiscreteScheduler()}
    )


def memorising(tiny):
    pipeline = quiet(StableDiffusionPipeline(**tiny.make_components()))
    latents = torch.zeros(2, *tiny.LATENT_SHAPE)
    pipeline.unet = OptimalDenoiser([(latents, torch.tensor([0, 1]))], pipeline.scheduler)
    return pipeline


def inpainting(tiny):
    return StableDiffusionPipeline(**tiny.make_components() | {"unet": tiny.make_unet(in_channels=9)})


def plain(tiny):
    return StableDiffusionPipeline(**tiny.make_components())


WRONG = {
    "measurement": (
        plain,
        {"operator": Downsample(4)},
        r"measurement must be of shape \(1, 3, 8, 8\) as the operator's, got \(1, 3, 32, 32\)",
    ),
    "eps": (plain, {"eps": torch.zeros(4, 8, 8)}, r"eps must be of shape \(1, 4, 8, 8\) as the latents, got"),
    "steps": (plain, {"steps": 0}, "steps must be at least 1, got 0"),
    "step_size": (plain, {"step_size": -1.0}, "step_size must be at least 0, got -1.0"),
    "no number": (plain, {"step_size": float("nan")}, "step_size must be at least 0, got nan"),
    "class": (plain, {"class_name": "mug"}, "class_name must come with a start distribution"),
    "factor": (plain, {"operator": Downsample(5)}, "factor must divide height and width 32 x 32, got 5"),
    "sigma": (
        plain,
        {"operator": Blur(0.0)},
        "sigma must be positive and at most 10.3 for this size, got 0.0",
    ),
    "wide sigma": (
        plain,
        {"operator": Blur(11)},
        "sigma must be positive and at most 10.3 for this size, got 11",
    ),
    "mask": (
        plain,
        {"operator": Inpaint(torch.eye(8))},
        r"mask must be of the pictures' height and width \(32, 32\), got \(8, 8\)",
    ),
    "ControlNet": (controlled, {}, "pipeline must be without a ControlNet"),
    "flow matching": (flowing, {}, "pipeline must have a UNet that denoises as Stable Diffusion's does"),
    "more than latents": (inpainting, {}, "unet must take 4 channels, those of the latents, got 9"),
    "no gradient": (memorising, {}, "unet must be differentiable in its noisy latents"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(tiny, pixels, case):
    make, settings, message = WRONG[case]
    call = {"operator": lambda x: x, "steps": 2} | settings
    with pytest.raises(ValueError, match=message):
        solve(make(tiny), pixels, **call)
