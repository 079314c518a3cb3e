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


def test_through_a_pipeline_of_stable_diffusion_3s_form():
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        sample_size=16, block_out_channels=(4,), layers_per_block=1, latent_channels=4, norm_num_groups=1,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5,
    )  # fmt: skip
    texts = {f"{kind}{i}": None for kind in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.StableDiffusion3Pipeline(transformer=transformer, vae=vae, scheduler=scheduler, **texts)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    latents = Repulsive().draw(3, (4, 8, 8), seeded())
    embeds = {"prompt_embeds": torch.randn(1, 5, 32), "pooled_prompt_embeds": torch.randn(1, 16)}
    size = {"height": 8, "width": 8, "num_images_per_prompt": 3}
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np"}
    assert pipe(latents=latents, **embeds, **size, **call).images.shape == (3, 8, 8, 3)
    assert torch.equal(seen[0], latents)
