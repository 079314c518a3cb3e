"""The tensor that reaches the UNet at its first call, for every scheduler, caught in a running pipeline."""

import copy
import inspect

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from onbrand.inference import start_latents

STEPS = (4, 20, 25)
SPACINGS = ("leading", "trailing", "linspace")
SCHEDULERS = {
    "DDIM": ("DDIMScheduler", {}),
    "DDPM": ("DDPMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}),
    "DPM-Solver++ Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM-Solver++ SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM-Solver++ single": ("DPMSolverSinglestepScheduler", {}),
    "DPM-Solver++ single Karras": ("DPMSolverSinglestepScheduler", {"use_karras_sigmas": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}),
}
SHAPE = (2, 4, 8, 8)


class Reached(Exception):
    """Carries the first input of the UNet out of the pipeline."""


@pytest.fixture(scope="module")
def pipeline(tiny):
    pipe = StableDiffusionPipeline(**tiny.make_components())
    pipe.set_progress_bar_config(disable=True)

    def forward(sample, *args, **kwargs):
        raise Reached(sample)

    pipe.unet.forward = forward
    embeds = torch.zeros(SHAPE[0], tiny.TOKENS, tiny.TEXT_WIDTH)
    pipe.first_input = lambda **call: first_input(pipe, prompt_embeds=embeds, **call)
    return pipe


def first_input(pipe, **call):
    with pytest.raises(Reached) as caught:
        pipe(guidance_scale=1.0, **call)
    return caught.value.args[0]


@pytest.fixture(scope="module")
def start_and_noise():
    g = torch.Generator().manual_seed(0)
    return 2 * torch.randn(SHAPE, generator=g), torch.randn(SHAPE, generator=g)


def make(tiny, name, spacing=None, **more):
    class_name, config = SCHEDULERS[name]
    scheduler_class = getattr(diffusers, class_name)
    has_spacing = spacing and "timestep_spacing" in inspect.signature(scheduler_class).parameters
    config = config | more | ({"timestep_spacing": spacing} if has_spacing else {})
    return scheduler_class.from_config(tiny.make_scheduler().config, **config)


def noised_by_diffusers(scheduler, x_start, noise, **schedule):
    """What the scheduler's own noising of x_start at its first timestep shows to the network."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(**schedule)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    t_0 = scheduler.timesteps[:1]
    return scheduler.scale_model_input(scheduler.add_noise(x_start, noise, t_0), t_0[0])


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_network_first_sees_x_start_noised(pipeline, start_and_noise, tiny, name, spacing, steps):
    x_start, noise = start_and_noise
    pipeline.scheduler = make(tiny, name, spacing)
    latents = start_latents(pipeline.scheduler, steps, x_start, noise)
    seen = pipeline.first_input(num_inference_steps=steps, latents=latents)
    expected = noised_by_diffusers(pipeline.scheduler, x_start, noise, num_inference_steps=steps)
    torch.testing.assert_close(seen, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["DDIM", "DPM-Solver++", "Euler"])
def test_closed_form_at_the_end_of_the_schedule(pipeline, start_and_noise, tiny, name):
    """sqrt(a) x_start + sqrt(1 - a) eps with a = alphas_cumprod[999], which trailing spacing starts at."""
    x_start, noise = start_and_noise
    pipeline.scheduler = make(tiny, name, "trailing")
    a = tiny.make_scheduler().alphas_cumprod[999].double()
    expected = (a.sqrt() * x_start + (1 - a).sqrt() * noise).float()
    latents = start_latents(pipeline.scheduler, 20, x_start, noise)
    seen = pipeline.first_input(num_inference_steps=20, latents=latents)
    torch.testing.assert_close(seen, expected, rtol=1e-6, atol=1e-6)


def test_custom_schedules(pipeline, start_and_noise, tiny):
    x_start, noise = start_and_noise
    for name, schedule in [
        ("DDIM", {}),
        ("DDPM", {"timesteps": [940, 500, 100]}),
        ("Euler", {"timesteps": [940, 500, 100]}),
        ("Euler", {"sigmas": [12.0, 3.0, 0.5]}),
        ("DPM-Solver++", {"timesteps": [940, 500, 100]}),
    ]:
        pipeline.scheduler = make(tiny, name)
        latents = start_latents(pipeline.scheduler, 3, x_start, noise, **schedule)
        seen = pipeline.first_input(num_inference_steps=3, latents=latents, **schedule)
        expected = noised_by_diffusers(
            pipeline.scheduler, x_start, noise, **(schedule or {"num_inference_steps": 3})
        )
        torch.testing.assert_close(seen, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["DDIM", "Euler", "PNDM", "LMS"])
def test_the_scheduler_is_left_alone(start_and_noise, tiny, name):
    scheduler = make(tiny, name)
    scheduler.set_timesteps(7)
    before = copy.deepcopy(vars(scheduler))
    start_latents(scheduler, 20, *start_and_noise)
    after = vars(scheduler)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert (
            torch.equal(value, after[key])
            if isinstance(value, torch.Tensor)
            else repr(value) == repr(after[key])
        )


def test_without_a_start_the_latents_are_the_noise(start_and_noise, tiny):
    noise = start_and_noise[1]
    assert start_latents(make(tiny, "Euler"), 20, None, noise) is noise


def test_one_start_serves_all_pictures(start_and_noise, tiny):
    x_start, noise = start_and_noise
    scheduler = make(tiny, "Euler")
    one = start_latents(scheduler, 20, x_start[0], noise)
    torch.testing.assert_close(one, start_latents(scheduler, 20, x_start[:1].expand(SHAPE), noise))


def test_zero_terminal_snr_hides_the_start(start_and_noise, tiny):
    x_start, noise = start_and_noise
    scheduler = make(tiny, "DDIM", "trailing", rescale_betas_zero_snr=True)
    torch.testing.assert_close(start_latents(scheduler, 20, x_start, noise), noise, rtol=0, atol=1e-6)


def test_flow_matching_mixes_linearly(start_and_noise, tiny):
    x_start, noise = start_and_noise
    flow = FlowMatchEulerDiscreteScheduler()
    torch.testing.assert_close(start_latents(flow, 10, x_start, noise), noise, rtol=0, atol=1e-6)
    dpm = make(tiny, "DPM-Solver++", use_flow_sigmas=True, prediction_type="flow_prediction")
    dpm.set_timesteps(10)
    sigma = dpm.sigmas[0]
    assert 0.9 < sigma < 1
    mixed = (1 - sigma) * x_start + sigma * noise
    torch.testing.assert_close(start_latents(dpm, 10, x_start, noise), mixed)


def test_bad_shapes_and_schedules_are_refused(start_and_noise, tiny):
    x_start, noise = start_and_noise
    with pytest.raises(ValueError, match=r"shaped like noise \(2, 4, 8, 8\), got \(2, 4, 8, 4\)"):
        start_latents(make(tiny, "DDIM"), 20, x_start[..., :4], noise)
    with pytest.raises(ValueError, match="does not support custom"):
        start_latents(make(tiny, "DDIM"), 3, x_start, noise, timesteps=[9, 5, 1])
