"""The pipeline with a start distribution: what it hands to diffusers, and what it refuses."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from onbrand.inference import OffsetStableDiffusionPipeline, start_latents
from onbrand.inference.picture import encode_pictures
from onbrand.pca import StartDistribution, vae_fingerprint
from PIL import Image

STEPS = 20


@pytest.fixture(scope="module")
def components(tiny):
    return tiny.make_components()


@pytest.fixture(scope="module")
def distribution(tiny, components):
    x = torch.randn(20, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(0)) + 1
    return StartDistribution.fit(
        x,
        torch.arange(20) % 2,
        class_names=["mug", "shoe"],
        components=2,
        caption_prefixes={"mug": "a mug", "shoe": "a shoe"},
        vae_fingerprint=vae_fingerprint(components["vae"]),
        offset_from=941,
    )


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(components, distribution):
    return quiet(OffsetStableDiffusionPipeline(**components, start_distribution=distribution))


@pytest.fixture
def plain(components):
    return quiet(OffsetStableDiffusionPipeline(**components))


class Reached(Exception):
    """Carries the first input of the UNet out of the pipeline."""


@pytest.fixture
def reached(monkeypatch, components):
    """Runs a call up to the UNet and returns what the UNet was shown."""

    def forward(sample, *args, **kwargs):
        raise Reached(sample)

    def run(pipe, *args, **kwargs):
        monkeypatch.setattr(components["unet"], "forward", forward)
        with pytest.raises(Reached) as caught:
            pipe(*args, **{"num_inference_steps": STEPS, "guidance_scale": 1.0, **kwargs})
        return caught.value.args[0]

    return run


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def expected(pipe, x_start, noise, steps=STEPS):
    """The first input of the UNet, by the closed form for DDIM."""
    pipe.scheduler.set_timesteps(steps)
    a = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps[0]]
    return a.sqrt() * x_start + (1 - a).sqrt() * noise


def noise_of(tiny, n, seed=0):
    return torch.randn(n, *tiny.LATENT_SHAPE, generator=seeded(seed))


def test_the_unet_starts_from_the_class_mean(pipe, reached, tiny, distribution):
    seen = reached(pipe, "anything", class_name="shoe", generator=seeded(), num_images_per_prompt=3)
    torch.testing.assert_close(seen, expected(pipe, distribution.mean[1], noise_of(tiny, 3)))


def test_prompts_of_different_classes(pipe, reached, tiny, distribution):
    prompts = ["a shoe", "a mug, red"]
    call = {"generator": seeded(), "num_images_per_prompt": 2}
    g = seeded()
    noise = torch.cat([torch.randn(2, *tiny.LATENT_SHAPE, generator=g) for _ in prompts])
    torch.testing.assert_close(
        reached(pipe, prompts, **call), expected(pipe, distribution.mean[[1, 1, 0, 0]], noise)
    )
    call["generator"] = seeded()
    swapped = reached(pipe, prompts, class_name=["mug", "shoe"], **call)
    torch.testing.assert_close(swapped, expected(pipe, distribution.mean[[0, 0, 1, 1]], noise))


def test_draws_share_the_noise_of_the_mean(pipe, reached, tiny, distribution):
    seen = reached(pipe, "a mug", start="draw", generator=seeded(), num_images_per_prompt=2)
    g = seeded()
    noise = torch.randn(2, *tiny.LATENT_SHAPE, generator=g)
    drawn = distribution.sample(torch.tensor([0, 0]), g)
    torch.testing.assert_close(seen, expected(pipe, drawn, noise))


def test_a_picture_does_not_depend_on_its_batch(pipe, reached):
    batch = reached(pipe, ["a mug", "a shoe"], generator=[seeded(3), seeded(4)], start="draw")
    alone = reached(pipe, "a shoe", generator=[seeded(4)], start="draw")
    torch.testing.assert_close(batch[1:], alone)


def test_a_chosen_picture_as_it_is_or_projected(pipe, reached, tiny, distribution, components):
    image = Image.linear_gradient("L").convert("RGB")
    encoded = encode_pictures(image, components["vae"], height=32, width=32)
    noise = noise_of(tiny, 2)
    call = {"start_image": image, "num_images_per_prompt": 2}
    seen = reached(pipe, "no class needed", generator=seeded(), **call)
    torch.testing.assert_close(seen, expected(pipe, encoded, noise), atol=1e-5, rtol=1e-5)
    seen = reached(pipe, "a shoe", generator=seeded(), project_start=True, **call)
    projected = distribution.project(encoded, torch.tensor([1]))
    torch.testing.assert_close(seen, expected(pipe, projected, noise), atol=1e-5, rtol=1e-5)


def test_given_x_start_and_initializer(pipe, plain, reached, tiny):
    class Ones:
        def draw(self, num_images, shape, generator):
            return torch.ones(num_images, *shape)

    x_start = noise_of(tiny, 1)[0]
    for each in (pipe, plain):
        seen = reached(each, "a hat", x_start=x_start, noise=Ones())
        torch.testing.assert_close(seen, expected(each, x_start[None], torch.ones(1, *tiny.LATENT_SHAPE)))


def test_latents_are_handed_on_as_they_are(pipe, reached, tiny):
    latents = noise_of(tiny, 1)
    assert torch.equal(reached(pipe, "a hat", latents=latents), latents)


def test_prompt_embeddings_need_a_class_name(pipe, reached, tiny, distribution):
    embeds = torch.zeros(2, tiny.TOKENS, tiny.TEXT_WIDTH)
    seen = reached(pipe, prompt_embeds=embeds, class_name="mug", generator=seeded())
    assert seen.shape[0] == 2
    with pytest.raises(ValueError, match="class_name must be one of mug, shoe, got None"):
        pipe(prompt_embeds=embeds)
    with pytest.raises(ValueError, match="prompt must be given unless prompt_embeds is, got neither"):
        pipe(class_name="mug")


def test_pure_noise_and_no_distribution_are_diffusers_own_pictures(pipe, plain, components):
    oracle = quiet(StableDiffusionPipeline(**components))
    for scheduler in (DDIMScheduler, EulerDiscreteScheduler):
        call = {"num_inference_steps": 2, "num_images_per_prompt": 2, "output_type": "np"}
        for each in (pipe, plain, oracle):
            each.scheduler = scheduler.from_config(components["scheduler"].config)
        pictures = oracle("a mug", generator=seeded(), **call).images
        assert np.array_equal(pipe("a mug", start="none", generator=seeded(), **call).images, pictures)
        assert np.array_equal(plain("a mug", generator=seeded(), **call).images, pictures)


def test_pictures_are_those_of_diffusers_with_our_start_latents(pipe, tiny, distribution, components):
    oracle = quiet(StableDiffusionPipeline(**components))
    call = {"num_inference_steps": 3, "output_type": "np", "guidance_scale": 3.0, "timesteps": None}
    with pytest.warns(UserWarning, match="first timestep"):
        ours = pipe("a mug", generator=seeded(), **call).images
    latents = start_latents(pipe.scheduler, 3, distribution.mean[:1], noise_of(tiny, 1))
    assert np.array_equal(ours, oracle("a mug", latents=latents, **call).images)


def test_a_sampler_that_starts_too_low_warns_with_both_numbers(pipe, reached, components):
    with pytest.warns(UserWarning, match="first timestep 901 lies below 941") as caught:
        reached(pipe, "a mug", num_inference_steps=10)
    assert caught[0].filename == __file__
    pipe.scheduler = DDIMScheduler.from_config(components["scheduler"].config, timestep_spacing="trailing")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        reached(pipe, "a mug", num_inference_steps=10)
        pipe.scheduler = components["scheduler"]
        reached(pipe, "a mug", num_inference_steps=20)
        reached(pipe, "a mug", num_inference_steps=10, start="none")


def test_an_empty_range_does_not_warn(components, reached, tiny):
    untrained = StartDistribution.fit(
        torch.zeros(1, *tiny.LATENT_SHAPE), torch.tensor([0]), class_names=["mug"], skip_interval=0
    )
    pipe = quiet(OffsetStableDiffusionPipeline(**components, start_distribution=untrained))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        reached(pipe, "a mug", num_inference_steps=4)


def test_half_precision_keeps_float32_statistics(tiny, distribution):
    parts = tiny.make_components()
    pipe = OffsetStableDiffusionPipeline(**parts, start_distribution=distribution).to(torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    assert pipe.start_distribution.mean.dtype == torch.float32
    seen = quiet(pipe)("a mug", num_inference_steps=STEPS, output_type="latent", generator=seeded()).images
    assert seen.dtype == torch.bfloat16
    assert torch.isfinite(seen).all()


def test_another_size_is_refused(pipe, tiny):
    match = "height and width must be 32 x 32 as in the start distribution, got 64 x 32"
    with pytest.raises(ValueError, match=match):
        pipe("a mug", height=64)
    with pytest.raises(ValueError, match=match):
        pipe("a mug", height=64, start_image=Image.new("RGB", (64, 64)), project_start=True)
    with pytest.raises(ValueError, match="must be 32 x 32, the size of the start, got 64 x 32"):
        pipe("a mug", height=64, x_start=noise_of(tiny, 1))


def test_pure_noise_and_chosen_pictures_may_be_of_any_size(pipe, reached, tiny, components):
    assert reached(pipe, "a mug", height=64, start="none").shape == (1, 4, 16, 8)
    image = Image.new("RGB", (64, 64))
    seen = reached(pipe, "a mug", width=64, start_image=image, generator=seeded())
    encoded = encode_pictures(image, components["vae"], height=32, width=64)
    noise = torch.randn(1, 4, 8, 16, generator=seeded())
    torch.testing.assert_close(seen, expected(pipe, encoded, noise), atol=1e-5, rtol=1e-5)


def test_no_class_and_contradictions_are_refused_before_the_network_runs(pipe, plain):
    with pytest.raises(
        ValueError, match="class_name must be one of mug, shoe, got None and no caption prefix"
    ):
        pipe("a hat")
    with pytest.raises(ValueError, match="latents must be the only start, got class_name beside them"):
        pipe("a mug", class_name="mug", latents=torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="class_name must come with a start distribution"):
        plain("a mug", class_name="mug")


def test_statistics_of_another_vae_are_refused(plain, tiny, distribution, components):
    other = components | {"vae": tiny.make_vae(seed=1)}
    with pytest.raises(ValueError, match="VAE must be the one the start distribution was fitted with"):
        OffsetStableDiffusionPipeline(**other, start_distribution=distribution)
    wide = StartDistribution.fit(torch.zeros(1, 16, 8, 8), torch.tensor([0]), class_names=["mug"])
    with pytest.raises(
        ValueError, match="VAE latent_channels must be 16 as in the start distribution, got 4"
    ):
        plain.set_start_distribution(wide)
