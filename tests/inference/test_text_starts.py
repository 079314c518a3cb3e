"""Starts that follow from the text, and starts without a class: what reaches the UNet."""

import copy
from types import SimpleNamespace

import pytest
import torch
from onbrand.inference import OffsetStableDiffusionPipeline, OffsetStableDiffusionXLPipeline
from onbrand.inference.text import pooled_text
from onbrand.pca import StartDistribution, text_fingerprint

PROMPTS = ["a mug", "red shoe"]


@pytest.fixture(scope="module", params=["sd", "xl"])
def pipe(request, tiny):
    """A pipeline whose start distribution was fitted to latents that follow the text."""
    kind, components = (
        (OffsetStableDiffusionPipeline, tiny.make_components())
        if request.param == "sd"
        else (OffsetStableDiffusionXLPipeline, tiny.make_xl_components())
    )
    pipe = kind(**components)
    pipe.set_progress_bar_config(disable=True)
    captions = [
        f"{colour} {kind}" for colour in ("red", "blue", "green", "a") for kind in ("mug", "shoe")
    ] * 3
    text = pooled_text(pipe, captions)
    linear = torch.randn(text.shape[1], 256, generator=seeded())
    x = (text @ linear + 0.1 * torch.randn(len(text), 256, generator=seeded(1))).view(-1, *tiny.LATENT_SHAPE)
    pipe.set_start_distribution(
        StartDistribution.fit(
            x,
            torch.arange(len(x)) % 2,
            class_names=["mug", "shoe"],
            components=3,
            family="text",
            text_embeds=text,
            text_fingerprint=text_fingerprint(lambda captions: pooled_text(pipe, captions)),
        )
    )
    return pipe


class Reached(Exception):
    """Carries the first input of the UNet out of the pipeline."""


def reached(pipe, *args, **call):
    def forward(sample, *_, **__):
        raise Reached(sample)

    own = pipe.unet.forward
    pipe.unet.forward = forward
    try:
        with pytest.raises(Reached) as caught:
            pipe(*args, **{"num_inference_steps": 20, "guidance_scale": 1.0, **call})
    finally:
        pipe.unet.forward = own
    return caught.value.args[0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def started(pipe, x_start, noise):
    pipe.scheduler.set_timesteps(20)
    a = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps[0]]
    return a.sqrt() * x_start + (1 - a).sqrt() * noise


@torch.no_grad()
def test_pooled_text_is_what_the_encoders_pool(pipe):
    found = pooled_text(pipe, PROMPTS)
    if hasattr(pipe, "text_encoder_2"):
        expected = pipe.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)[2]
    else:
        ids = pipe.tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt").input_ids
        expected = pipe.text_encoder(ids).pooler_output
    torch.testing.assert_close(found, expected)
    assert (found.dtype, found.device.type) == (torch.float32, "cpu")


def test_every_picture_starts_from_what_its_prompt_says(pipe, tiny):
    seen = reached(pipe, PROMPTS, class_name=["mug", "shoe"], num_images_per_prompt=2, generator=seeded(3))
    text = pooled_text(pipe, PROMPTS).repeat_interleave(2, dim=0)
    x_start = pipe.start_distribution.expected(torch.tensor([0, 0, 1, 1]), text_embeds=text)
    noise = torch.randn(4, *tiny.LATENT_SHAPE, generator=seeded(3))
    torch.testing.assert_close(seen, started(pipe, x_start, noise))
    assert not torch.allclose(x_start[0], pipe.start_distribution.mean[0], atol=0.1)


def test_draws_are_about_what_the_prompt_says(pipe, tiny):
    generators = [seeded(3), seeded(4)]
    seen = reached(pipe, PROMPTS, class_name="mug", start="draw", generator=generators)
    again = [seeded(3), seeded(4)]
    noise = torch.cat([torch.randn(1, *tiny.LATENT_SHAPE, generator=g) for g in again])
    ids, text = torch.zeros(1).long(), pooled_text(pipe, PROMPTS)
    drawn = [pipe.start_distribution.sample(ids, g, text_embeds=text[i : i + 1]) for i, g in enumerate(again)]
    torch.testing.assert_close(seen, started(pipe, torch.cat(drawn), noise))


def test_embeddings_without_a_prompt_tell_no_start(pipe):
    embeds = torch.zeros(1, 16, pipe.unet.config.cross_attention_dim)
    with pytest.raises(ValueError, match="prompt must be given where the start depends on the text"):
        pipe(prompt_embeds=embeds, class_name="mug")
    # pure noise needs no text
    call = {"pooled_prompt_embeds": torch.zeros(1, 20)} if hasattr(pipe, "text_encoder_2") else {}
    assert reached(pipe, prompt_embeds=embeds, start="none", **call).shape == (1, 4, 8, 8)


def test_a_picture_of_ones_own_is_projected_whatever_the_text(pipe, tiny):
    x = torch.randn(1, *tiny.LATENT_SHAPE, generator=seeded(5))
    seen = reached(pipe, "a mug", class_name="mug", x_start=x, project_start=True, generator=seeded(3))
    projected = pipe.start_distribution.project(x, torch.tensor([0]))
    noise = torch.randn(1, *tiny.LATENT_SHAPE, generator=seeded(3))
    torch.testing.assert_close(seen, started(pipe, projected, noise))


def test_another_text_encoder_is_refused(pipe):
    other = copy.copy(pipe)
    name = "text_encoder_2" if hasattr(pipe, "text_encoder_2") else "text_encoder"
    encoder = copy.deepcopy(getattr(pipe, name))
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=seeded()))
    setattr(other, name, encoder)
    with pytest.raises(ValueError, match="text encoder must be the one the start distribution was fitted"):
        other.set_start_distribution(pipe.start_distribution)
    other.set_start_distribution(None)


def test_encoders_cast_to_half_still_fit_their_start(pipe):
    half = copy.copy(pipe)
    for name in ("text_encoder", "text_encoder_2"):
        if hasattr(pipe, name):
            setattr(half, name, copy.deepcopy(getattr(pipe, name)).bfloat16())
    half.set_start_distribution(pipe.start_distribution)
    close = pooled_text(half, PROMPTS, full_precision=True)
    assert (close - pooled_text(pipe, PROMPTS)).norm() < 0.01 * close.norm()


def test_a_pipeline_without_its_text_encoder_is_refused():
    with pytest.raises(ValueError, match="text_encoder must be there for a start that depends on the text"):
        pooled_text(SimpleNamespace(text_encoder=None), PROMPTS)


def test_a_pooled_mixture_needs_no_class(tiny):
    x = torch.randn(20, *tiny.LATENT_SHAPE, generator=seeded()) + 1
    ids = (torch.arange(20) < 5).long()
    mixture = StartDistribution.fit(
        x, ids, class_names=["mug", "shoe"], family="pooled", caption_prefixes={"mug": "a mug"}
    )
    pipe = OffsetStableDiffusionPipeline(**tiny.make_components(), start_distribution=mixture)
    noise = torch.randn(1, *tiny.LATENT_SHAPE, generator=seeded(3))
    seen = reached(pipe, "a mug", generator=seeded(3))
    torch.testing.assert_close(seen, started(pipe, x.mean(0), noise))
    named = reached(pipe, "a mug", class_name="shoe", start="draw", generator=seeded(3))
    torch.testing.assert_close(named, started(pipe, mixture.mean[1], noise))
    with pytest.raises(ValueError, match="class_name must be one of mug, shoe, got None"):
        reached(pipe, "a hat", x_start=x[:1], project_start=True)
    own = reached(pipe, "a mug", x_start=x[:1], project_start=True, generator=seeded(3))
    torch.testing.assert_close(own, started(pipe, mixture.mean[0], noise))
    either = [started(pipe, mean, noise) for mean in mixture.mean]
    drawn = reached(pipe, "a mug", start="draw", generator=seeded(3))
    assert any(torch.allclose(drawn, one, atol=1e-5) for one in either)
