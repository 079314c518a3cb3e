"""Traces: the predicted x_0 against the schedulers' own, x_t against what the network is given."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    UniPCMultistepScheduler,
)
from onbrand.inference import OffsetStableDiffusionPipeline
from onbrand.inference.contrastive import ContrastiveNoise
from onbrand.inference.couplings import Independent
from onbrand.inference.generate import build_sampler, generate
from onbrand.inference.prediction import predicted_x_0
from onbrand.inference.sampler_names import SHORT_NAMES, familiar_name, find_sampler
from onbrand.inference.trace import TraceStep, record_steps, trace
from onbrand.inference.trace_sheet import _spread, trace_sheet
from onbrand.inference.vae import pictures_of
from onbrand.pca import Sampler, StartDistribution

pytestmark = pytest.mark.filterwarnings("ignore:the sampler's first timestep")


@pytest.fixture(scope="module")
def pipe(tiny):
    distribution = StartDistribution.fit(
        torch.randn(20, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(0)) + 1,
        torch.arange(20) % 2,
        class_names=["mug", "shoe"],
        components=2,
    )
    return OffsetStableDiffusionPipeline(**tiny.make_components(), start_distribution=distribution)


def run(scheduler, *, steps=6):
    """What the scheduler itself predicts and what is recorded, for a network that answers with noise."""
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(steps)
    recorded, own = record_steps(scheduler), []
    sample = torch.randn(1, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scheduler.scale_model_input(sample, t)
        output = torch.randn(sample.shape, generator=generator)
        stepped = scheduler.step(output, t, sample)
        own.append(stepped.pred_original_sample[0])
        sample = stepped.prev_sample
    return torch.stack([step.x_0 for step in recorded]), torch.stack(own)


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [
        *((DDIMScheduler, kind) for kind in ("epsilon", "v_prediction", "sample")),
        *((EulerDiscreteScheduler, kind) for kind in ("epsilon", "v_prediction", "sample")),
        *((EulerAncestralDiscreteScheduler, kind) for kind in ("epsilon", "v_prediction")),
    ],
)
def test_x_0_is_what_the_scheduler_predicts(tiny, scheduler, kind):
    recorded, own = run(scheduler.from_config(tiny.make_scheduler(prediction_type=kind).config))
    torch.testing.assert_close(recorded, own, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_x_0_of_both_calls_of_a_heun_step(tiny, kind):
    config = tiny.make_scheduler(prediction_type=kind).config
    recorded, own = run(HeunDiscreteScheduler.from_config(config))
    assert len(recorded) == 11
    torch.testing.assert_close(recorded, own, rtol=1e-3, atol=1e-3)


def test_x_0_at_the_half_steps_of_dpm2(tiny):
    scheduler = KDPM2DiscreteScheduler.from_config(tiny.make_scheduler().config)
    scheduler.set_timesteps(5)
    recorded, eps = record_steps(scheduler), torch.randn(1, 4, 8, 8)
    truth, levels = torch.randn(1, 4, 8, 8), [scheduler.sigmas[0]]
    levels += [scheduler.sigmas_interpol[1], scheduler.sigmas[1]]
    for t, sigma in zip(scheduler.timesteps, levels, strict=False):
        noisy = truth + sigma * eps
        scheduler.scale_model_input(noisy, t)
        scheduler.step(eps, t, noisy)
    for step in recorded:
        torch.testing.assert_close(step.x_0, truth[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_x_0_is_what_a_multistep_solver_converts_to(tiny, scheduler, kind):
    solver = scheduler.from_config(tiny.make_scheduler(prediction_type=kind).config)
    solver.set_timesteps(6)
    sample, output = torch.randn(4, 8, 8), torch.randn(4, 8, 8)
    for index, t in enumerate(solver.timesteps):
        solver._step_index = index
        x_t, x_0 = predicted_x_0(solver, output, t, sample, index=index)
        torch.testing.assert_close(
            x_0, solver.convert_model_output(output, sample=sample), rtol=1e-4, atol=1e-4
        )
        assert torch.equal(x_t, sample)


def test_x_0_of_flow_matching_undoes_the_mixture():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    truth, eps = torch.randn(2, 4, 8, 8)
    for index, (t, sigma) in enumerate(zip(scheduler.timesteps, scheduler.sigmas, strict=False)):
        mixed = (1 - sigma) * truth + sigma * eps
        torch.testing.assert_close(predicted_x_0(scheduler, eps - truth, t, mixed, index=index)[1], truth)


def test_the_last_x_0_of_ddim_is_the_picture(pipe, tiny):
    own, pipe.scheduler = pipe.scheduler, tiny.make_scheduler(set_alpha_to_one=True, steps_offset=0)
    call = {"sampler": Sampler("DDIMScheduler", 4), "start": "draw", "class_name": "shoe"}
    try:
        steps = trace(pipe, "a shoe", seed=5, **call)
        (latents,) = generate(pipe, ["a shoe"], seed=5, output_type="latent", **call)
        (picture,) = generate(pipe, ["a shoe"], seed=5, **call)
    finally:
        pipe.scheduler = own
    assert [step.timestep for step in steps] == [750, 500, 250, 0]
    torch.testing.assert_close(steps[-1].x_0, latents, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(steps[0].x_0, latents, atol=0.1)
    (decoded,) = pictures_of(pipe.vae, latents[None])
    assert np.abs(np.asarray(decoded, int) - np.asarray(picture, int)).max() <= 1


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++-karras", "heun", "dpm2"])
def test_x_t_is_what_the_network_is_given_and_guidance_is_in_x_0(pipe, name):
    scheduler, config = find_sampler(name)
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].clone()))
    own = pipe.scheduler
    call = {"sampler": Sampler(scheduler, 3), "scheduler_config": config, "class_name": "mug"}
    try:
        steps = trace(pipe, "a mug", **call)
    finally:
        hook.remove()
    assert pipe.scheduler is own
    assert len(steps) == len(seen) >= 3
    for step, given in zip(steps, seen, strict=True):
        torch.testing.assert_close(step.x_t, given)
    unguided = trace(pipe, "a mug", guidance_scale=1.0, **call)
    torch.testing.assert_close(unguided[0].x_t, steps[0].x_t)
    assert not torch.allclose(unguided[0].x_0, steps[0].x_0, atol=1e-4)


def test_what_cannot_be_traced_is_refused():
    latents = torch.zeros(4, 8, 8)
    scheduler = DDIMScheduler(prediction_type="score")
    with pytest.raises(
        ValueError, match="prediction_type must be epsilon, v_prediction or sample, got 'score'"
    ):
        predicted_x_0(scheduler, latents, 1, latents, index=0)

    class Odd(DDIMScheduler):
        pass

    odd = Odd()
    del odd.alphas_cumprod
    with pytest.raises(ValueError, match=r"scheduler must be one that noises as .*, got Odd"):
        predicted_x_0(odd, latents, 1, latents, index=0)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++"])
def test_what_an_initializer_looks_at_is_no_step(pipe, name):
    scheduler, config = find_sampler(name)
    how = {"sampler": Sampler(scheduler, 4), "scheduler_config": config, "seed": 0, "class_name": "mug"}
    noise = ContrastiveNoise(Independent(), steps=2)
    looked = trace(pipe, "a mug", noise=noise, num_images_per_prompt=2, **how)
    plain = trace(pipe, "a mug", noise=Independent(), num_images_per_prompt=2, **how)
    assert [step.timestep for step in looked] == [step.timestep for step in plain]
    assert not torch.equal(looked[0].x_t, plain[0].x_t)


def test_a_title_is_one_line(pipe):
    step = TraceStep(1.0, torch.zeros(4, 8, 8), torch.zeros(4, 8, 8))
    sheets = [trace_sheet(pipe, {"one": [step]}, title=title) for title in ("a\n mug", "a mug")]
    assert np.array_equal(*map(np.asarray, sheets))


def test_a_sheet_has_a_column_a_step_up_to_twenty_five(pipe):
    latents = torch.randn(4, 8, 8)
    step = TraceStep(1.0, latents, latents)
    sizes = [
        trace_sheet(pipe, {"one": [step] * n, "two": [step] * n}, title="a" * 400).size for n in (10, 25, 60)
    ]
    assert sizes[0][0] < sizes[1][0] == sizes[2][0]
    alone = trace_sheet(pipe, {"one": [step] * 10}, title="t")
    assert alone.height < sizes[0][1]
    long = [TraceStep(float(t), latents, latents) for t in range(60)]
    spread = [kept.timestep for kept in _spread(long)]
    assert (len(spread), spread[0], spread[-1]) == (25, 0, 59)


@pytest.mark.parametrize("name", sorted(SHORT_NAMES))
def test_every_short_name_draws(pipe, name):
    scheduler, config = find_sampler(name.upper())
    built = build_sampler(pipe.scheduler, Sampler(scheduler, 4), config)
    assert all(built.config[key] == value for key, value in config.items())
    call = {"sampler": Sampler(scheduler, 4), "scheduler_config": config, "class_names": ["mug"]}
    (first,), (again,) = (generate(pipe, ["a mug"], seed=1, **call) for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_names_of_samplers():
    assert find_sampler("EDMEulerScheduler") == (EDMEulerScheduler.__name__, {})
    with pytest.raises(ValueError, match=r"nearest: .*euler-a.*got 'eulera'"):
        find_sampler("eulera")
    with pytest.raises(ValueError, match=r"nearest: DDIMScheduler.*got 'DDIMSheduler'"):
        find_sampler("DDIMSheduler")
    assert familiar_name("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}) == "DPM++ 2M Karras"
    sde = {"algorithm_type": "sde-dpmsolver++"}
    assert familiar_name("DPMSolverMultistepScheduler", sde) == "DPM++ 2M SDE"
    assert familiar_name("DEISMultistepScheduler", {}) == "DEISMultistep"


@pytest.mark.parametrize("force_upcast", [True, False])
def test_a_half_precision_vae_is_lent_its_full_precision(tiny, force_upcast):
    vae = tiny.make_vae(force_upcast=force_upcast).half()
    pipeline = OffsetStableDiffusionPipeline(**tiny.make_components() | {"vae": vae})
    # copying the hooks of an offloaded VAE would copy the models before it
    vae.uncopied = Uncopied()
    seen, before = [], {key: value.clone() for key, value in vae.state_dict().items()}
    vae.decoder.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    [picture] = pictures_of(pipeline.vae, torch.randn(1, *tiny.LATENT_SHAPE))
    assert picture.size == (tiny.PIXELS, tiny.PIXELS)
    assert seen == [torch.float32 if force_upcast else torch.float16]
    assert vae.dtype == torch.float16
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())


class Uncopied:
    def __deepcopy__(self, memo):
        raise AssertionError("must not be copied")
