"""What is refused before anything runs, with what differs and both values."""

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from onbrand.inference import AggregatedPipeline
from onbrand.inference.couplings import Repulsive
from PIL import Image

STEPS = 4
CONDITION = Image.linear_gradient("L").resize((32, 32)).convert("RGB")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(pipeline, prompt="a mug", *, seed=0, **call):
    how = {"num_inference_steps": STEPS, "output_type": "latent", "generator": seeded(seed)}
    return pipeline(prompt, **how | call).images


def count_calls(monkeypatch, pipeline):
    """What the UNet is shown, each time it is called."""
    seen, forward = [], pipeline.unet.forward

    def counted(sample, *args, **kwargs):
        seen.append(sample.clone())
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(pipeline.unet, "forward", counted)
    return seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, o: [p], "pipelines must be two or more, got 1"),
        (
            lambda p, o: [p, o(vae=None)],
            "pipeline of model 2 must have vae, unet, scheduler, got none for vae",
        ),
        (
            lambda p, o: [p, StableDiffusionImg2ImgPipeline(**p.components)],
            "pipeline of model 2 must begin at noise, not at a picture, got StableDiffusionImg2Img",
        ),
        (
            lambda p, o: [p, o(unet={"in_channels": 5})],
            "UNet in_channels of model 2 must be 4 as of model 1, got 5",
        ),
        (
            lambda p, o: [p, p, o(vae={"scaling_factor": 0.13})],
            "VAE scaling_factor of model 3 must be 0.18215 as of model 1, got 0.13",
        ),
        (
            lambda p, o: [p, o(vae={})],
            "VAE of model 2 must be that of model 1: .* within 2% of their RMS .*, got an RMS difference of",
        ),
    ],
)
def test_pipelines_that_do_not_belong_together(make, tiny, change, message):
    def other(**parts):
        makers = {"vae": tiny.make_vae, "unet": tiny.make_unet}
        return make(**{k: v if v is None else makers[k](**{"seed": 1} | v) for k, v in parts.items()})

    with pytest.raises(ValueError, match=message):
        AggregatedPipeline(change(make(), other))


def test_a_vae_of_the_same_weights_is_the_same(make, tiny):
    AggregatedPipeline([make(), make(vae=tiny.make_vae().to(torch.float16))])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"weights": 1.5}, r"weights must be in \[0, 1\], got 1.5"),
        ({"weights": (0.5, 0.5)}, "weights must be 1, one fewer than pipelines, got 2"),
        ({"step_sizes": (0.1,)}, "step_sizes must be 2, one a model, got 1"),
        ({"step_sizes": (0.1, -1)}, "step_sizes must be at least 0, got -1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"kind": "mean"}, "kind must be one of nested, authors, slerp, rescaled, got 'mean'"),
        ({"kind": "authors"}, "kind 'authors' must have three models and two weights, got 1"),
        ({"adapters": [None]}, "adapters must be 2, one entry a model, got 1"),
        ({"adapters": [["a"], None]}, "adapters of model 2 must be given, as it shares modules with model 1"),
    ],
)
def test_settings_out_of_range(make, how, message):
    pipeline = make()
    with pytest.raises(ValueError, match=message):
        AggregatedPipeline([pipeline, pipeline], **how)


def test_four_models_have_no_default_weights(make):
    pipeline = make()
    with pytest.raises(ValueError, match="weights and step_sizes must be given for 4 pipelines, got None"):
        AggregatedPipeline([pipeline] * 4, (0.5, 0.5, 0.5))
    draw(AggregatedPipeline([pipeline] * 4, (0.5, 0.5, 0.5), step_sizes=[0.3] * 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"calls": [{}]}, "calls must be 2, one a pipeline, got 1"),
        (
            {"calls": [{}, {"generator": 1}]},
            r"generator must be one for all models, got one in calls\[1\]",
        ),
        (
            {"class_name": "mug"},
            "arguments of model 1 must be those of StableDiffusionPipeline, got class_name",
        ),
        (
            {"calls": [{}, {"image": CONDITION}]},
            "arguments of model 2 must be those of StableDiffusionPipeline, got image: .* belongs in calls",
        ),
        ({"calls": [{}, {"height": 64}]}, "height of model 2 must be 32 as of model 1, got 64"),
        ({"num_inference_steps": 2}, "steps must be at most num_inference_steps 2, got 3"),
        (
            {"noise": Repulsive()},
            "pipeline of model 1 must be one of onbrand's to take noise, got Stable",
        ),
        (
            {"calls": [{}, {"prompt": ["a mug", "a shoe"]}]},
            r"latents of model 2 must be shaped \(1, 4, 8, 8\) as of model 1, got \(2, 4, 8, 8\)",
        ),
    ],
)
def test_calls_that_do_not_fit(make, call, message):
    with pytest.raises(ValueError, match=message):
        draw(AggregatedPipeline([make(), make(seed=1)]), **call)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            lambda tiny: EulerDiscreteScheduler(),
            "scheduler of model 2 must be DDIMScheduler or DDPMScheduler, .* got EulerDiscreteScheduler",
        ),
        (
            lambda tiny: tiny.make_scheduler(beta_end=0.02),
            "noise schedule of model 2 must have alphas_cumprod .* at timestep .* as of model 1, got",
        ),
        (
            lambda tiny: tiny.make_scheduler(num_train_timesteps=500),
            "noise schedule of model 2 must have 1000 timesteps as of model 1, got 500",
        ),
        (
            lambda tiny: tiny.make_scheduler(timestep_spacing="trailing"),
            "step 0 of model 2 must be from timestep 751 to 501 as of model 1, got 999 to 749",
        ),
    ],
)
def test_schedules_that_differ(make, tiny, monkeypatch, scheduler, message):
    pipelines = [make(), make(seed=1, scheduler=scheduler(tiny))]
    seen = count_calls(monkeypatch, pipelines[0])
    with pytest.raises(ValueError, match=message):
        draw(AggregatedPipeline(pipelines))
    assert seen == []


def test_steps_to_other_timesteps(make, tiny):
    even = tiny.make_scheduler(timestep_spacing="linspace")
    pipelines = [make(scheduler=even), make(scheduler=DDPMScheduler.from_config(even.config))]
    with pytest.raises(ValueError, match=r"step 0 of model 2 must be .* 999 to 749 .* 999 to 666"):
        draw(AggregatedPipeline(pipelines))


def test_steps_that_differ_in_number(make, tiny):
    scheduler = DDPMScheduler.from_config(tiny.make_scheduler().config)
    pipelines = [make(scheduler=scheduler), make(scheduler=scheduler)]
    custom = {"num_inference_steps": None, "timesteps": [700, 300, 0]}
    with pytest.raises(ValueError, match="number of steps of model 2 must be 3 as of model 1, got 4"):
        draw(
            AggregatedPipeline(pipelines),
            calls=[{"timesteps": [700, 300, 0]}, {"timesteps": [700, 300, 100, 0]}],
            **custom | {"timesteps": None},
        )
    assert draw(AggregatedPipeline(pipelines), **custom).shape == (1, 4, 8, 8)
