"""Coupled noise in samplers: which of them add noise of their own, and what the network is shown first."""

import inspect

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from onbrand.inference import OffsetStableDiffusionPipeline
from onbrand.inference.couplings import Repulsive, adds_noise
from onbrand.pca import StartDistribution


def seeded():
    return torch.Generator().manual_seed(0)


def sampled(scheduler, eta, seed):
    """Four steps from the same latents, for a network that answers with a tenth of them."""
    takes = inspect.signature(scheduler.step).parameters
    scheduler.set_timesteps(4)
    torch.manual_seed(seed)
    given = {"generator": torch.Generator().manual_seed(seed)} if "generator" in takes else {}
    given |= {"eta": eta} if "eta" in takes else {}
    x = torch.ones(1, 4, 8, 8)
    for t in scheduler.timesteps:
        scheduler.is_scale_input_called = True  # some warn otherwise
        x = scheduler.step(0.1 * x, t, x, **given).prev_sample
    return x


SCHEDULERS = [
    ("DDIMScheduler", {}), ("DDPMScheduler", {}), ("DEISMultistepScheduler", {}), ("TCDScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestepScheduler", {}), ("EulerDiscreteScheduler", {}), ("LCMScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}), ("HeunDiscreteScheduler", {}), ("KDPM2DiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}), ("LMSDiscreteScheduler", {}), ("PNDMScheduler", {}),
    ("UniPCMultistepScheduler", {}), ("SASolverScheduler", {}), ("FlowMatchEulerDiscreteScheduler", {}),
    ("SASolverScheduler", {"tau_func": lambda t: 0}), ("FlowMatchHeunDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}), ("IPNDMScheduler", {}),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min"}),
    ("FlowMatchLCMScheduler", {}), ("CMStochasticIterativeScheduler", {}), ("DDIMParallelScheduler", {}),
]  # fmt: skip


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize(
    ("name", "config"), SCHEDULERS, ids=[f"{name}-{'-'.join(config)}" for name, config in SCHEDULERS]
)
def test_which_samplers_add_noise(name, config, eta):
    scheduler = getattr(diffusers, name)(**config)
    differ = not torch.equal(sampled(scheduler, eta, seed=0), sampled(scheduler, eta, seed=1))
    assert adds_noise(scheduler, eta) == differ


@pytest.fixture(scope="module")
def components(tiny):
    return tiny.make_components()


def first_input(pipe, monkeypatch, **call):
    """What the UNet is shown first."""

    class Reached(Exception):
        pass

    def forward(sample, *args, **kwargs):
        raise Reached(sample)

    monkeypatch.setattr(pipe.unet, "forward", forward)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(Reached) as caught:
        pipe("a mug", num_inference_steps=20, guidance_scale=1.0, **call)
    return caught.value.args[0]


def test_through_a_pipeline_the_noise_is_centred_and_the_start_is_not(tiny, components, monkeypatch):
    latents = torch.randn(20, *tiny.LATENT_SHAPE, generator=seeded()) + 1
    start = StartDistribution.fit(
        latents, torch.zeros(20, dtype=torch.long), class_names=["mug"], components=0, offset_from=941
    )
    pipe = OffsetStableDiffusionPipeline(**components, start_distribution=start)
    call = {"num_images_per_prompt": 4, "generator": seeded()}
    seen = first_input(pipe, monkeypatch, class_name="mug", noise=Repulsive(), **call)
    pipe.scheduler.set_timesteps(20)
    a = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps[0]]
    x_start = a.sqrt() * start.mean[0]
    assert x_start.abs().mean() > 0.05
    torch.testing.assert_close(seen.mean(0), x_start, rtol=0, atol=1e-5)
    eps = (seen - x_start) / (1 - a).sqrt()
    torch.testing.assert_close(eps, Repulsive().draw(4, tiny.LATENT_SHAPE, seeded()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_through_diffusers_own_pipelines(form, scheduler, tiny, monkeypatch):
    """As the module's example says: what the network sees first is the noise at the scheduler's own scale."""
    parts = tiny.make_components() if form == "StableDiffusionPipeline" else tiny.make_xl_components()
    pipe = getattr(diffusers, form)(**parts)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    latents = Repulsive().draw(4, tiny.LATENT_SHAPE, seeded())
    seen = first_input(pipe, monkeypatch, num_images_per_prompt=4, latents=latents.to(pipe.dtype))
    pipe.scheduler.set_timesteps(20)
    scaled = latents * pipe.scheduler.init_noise_sigma
    scaled = pipe.scheduler.scale_model_input(scaled, pipe.scheduler.timesteps[0])
    torch.testing.assert_close(seen, scaled)
    assert seen.sum(0).abs().max() < 1e-5
