"""The tensor that reaches the UNet at its first call, for every scheduler, caught in a running pipeline.

Three oracles that share no formula with the code: the scheduler's own add_noise and scale_model_input;
alphas_cumprod of a plain DDIM scheduler at the timestep the UNet is told; and the scheduler's own step, which
must find x_start again when it is given the true noise.
"""

import copy
import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from onbrand.inference import start_latents
from onbrand.inference.start import NO_OP_BELOW, at_first_step, signal_power, start_share

STEPS = (4, 10, 20, 25, 28, 30, 50)
SPACINGS = ("leading", "trailing", "linspace")
KARRAS, EXPONENTIAL, BETA = (
    {name: True} for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
)
LU, ZERO_SNR = {"use_lu_lambdas": True}, {"rescale_betas_zero_snr": True}
V, SIGMA_MIN = {"prediction_type": "v_prediction"}, {"final_sigmas_type": "sigma_min"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS = {
    "DDIM": ("DDIMScheduler", [{}, V, ZERO_SNR]),
    "DDPM": ("DDPMScheduler", [{}, V, ZERO_SNR]),
    "PNDM": ("PNDMScheduler", [{"skip_prk_steps": True}, {"skip_prk_steps": False}]),
    "DPM-Solver++": (
        "DPMSolverMultistepScheduler",
        [{}, V, KARRAS, LU, EXPONENTIAL, BETA, ZERO_SNR, SIGMA_MIN, {"euler_at_final": True}],
    ),
    "DPM-Solver++ SDE": (
        "DPMSolverMultistepScheduler",
        [{"algorithm_type": "sde-dpmsolver++"}, KARRAS | {"algorithm_type": "sde-dpmsolver++"}],
    ),
    "DPM-Solver": (
        "DPMSolverMultistepScheduler",
        [SIGMA_MIN | {"algorithm_type": "dpmsolver"}, SIGMA_MIN | KARRAS | {"algorithm_type": "dpmsolver"}],
    ),
    "DPM-Solver++ single": (
        "DPMSolverSinglestepScheduler",
        [{}, KARRAS, EXPONENTIAL, BETA, SIGMA_MIN, {"algorithm_type": "sde-dpmsolver++"}],
    ),
    "UniPC": ("UniPCMultistepScheduler", [{}, V, KARRAS, EXPONENTIAL, BETA, ZERO_SNR, SIGMA_MIN]),
    "DEIS": ("DEISMultistepScheduler", [{}, KARRAS, EXPONENTIAL, BETA]),
    "SASolver": ("SASolverScheduler", [{}, KARRAS, EXPONENTIAL, BETA]),
    "Euler": ("EulerDiscreteScheduler", [{}, V, KARRAS, EXPONENTIAL, BETA, ZERO_SNR, SIGMA_MIN]),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", [{}, V, ZERO_SNR]),
    "Heun": ("HeunDiscreteScheduler", [{}, V, KARRAS, EXPONENTIAL, BETA]),
    "LMS": ("LMSDiscreteScheduler", [{}, KARRAS, EXPONENTIAL, BETA]),
    "KDPM2": ("KDPM2DiscreteScheduler", [{}, KARRAS, EXPONENTIAL, BETA]),
    "KDPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", [{}, KARRAS, EXPONENTIAL, BETA]),
    "LCM": ("LCMScheduler", [{}, V, ZERO_SNR]),
    "TCD": ("TCDScheduler", [{}, V, ZERO_SNR]),
}
# Their sigmas other than the plain ones begin at the end of the noise schedule whatever the spacing, and the
# whole-numbered timestep beside them is rounded or cut from it (999 or 998); others tell a fraction.
WHOLE_TIMESTEPS = {"DPM-Solver++", "DPM-Solver++ SDE", "DPM-Solver", "DPM-Solver++ single", "UniPC", "DEIS"}
WHOLE_TIMESTEPS |= {"SASolver"}
OWN_SIGMAS = {*KARRAS, *LU, *EXPONENTIAL, *BETA}
SHAPE = (2, 4, 8, 8)
BARELY_HIDDEN = 2.0**-24  # terminal a of zero SNR in schedulers with sigmas, which may not be infinite


class Reached(Exception):
    """Carries the first input of the UNet and its timestep out of the pipeline."""


@pytest.fixture(scope="module")
def parts(tiny):
    parts = tiny.make_components() | {"text_encoder": None, "tokenizer": None}

    def forward(sample, timestep, *args, **kwargs):
        raise Reached(sample, float(timestep))

    parts["unet"].forward = forward
    return parts


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """Spares the 2,000 calls below the search for their device, a third of their time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(diffusers.DiffusionPipeline, "_execution_device", torch.device("cpu"))
        yield


@pytest.fixture(scope="module")
def pipeline(parts):
    return StableDiffusionPipeline(**parts)


@pytest.fixture(scope="module")
def image_to_image(parts):
    return StableDiffusionImg2ImgPipeline(**parts)


@pytest.fixture(scope="module")
def start_and_noise():
    g = torch.Generator().manual_seed(0)
    return 2 * torch.randn(SHAPE, generator=g), torch.randn(SHAPE, generator=g)


def first_input(pipe, tiny, **call):
    """What the UNet is first given, and the timestep it is told."""
    pipe.set_progress_bar_config(disable=True)
    embeds = torch.zeros(SHAPE[0], tiny.TOKENS, tiny.TEXT_WIDTH)
    with pytest.raises(Reached) as caught:
        pipe(guidance_scale=1.0, prompt_embeds=embeds, **call)
    return caught.value.args


def make(tiny, name, spacing=None, **more):
    class_name, variants = SCHEDULERS[name]
    scheduler_class = getattr(diffusers, class_name)
    config = variants[0] | more
    if spacing and "timestep_spacing" in inspect.signature(scheduler_class).parameters:
        config |= {"timestep_spacing": spacing}
    return scheduler_class.from_config(tiny.make_scheduler().config, **config)


def make_all(tiny, name):
    """Every variant of the scheduler in every spacing it has, and what to call it in a message."""
    for variant in SCHEDULERS[name][1]:
        scheduler = make(tiny, name, **variant)
        for spacing in SPACINGS if "timestep_spacing" in scheduler.config else [None]:
            if spacing:
                scheduler.register_to_config(timestep_spacing=spacing)  # some take long to make
            yield scheduler, variant, f"{name} {variant} {spacing}"


def accepting(argument):
    """Names of the schedulers whose set_timesteps takes the argument."""
    setters = {name: getattr(diffusers, made_of).set_timesteps for name, (made_of, _) in SCHEDULERS.items()}
    return [name for name, setter in setters.items() if argument in inspect.signature(setter).parameters]


def share_by_table(tiny, name, variant, t):
    """sqrt(a) at a timestep by DDIM's table; between two of them along the sigmas, as diffusers has it."""
    zero_snr = {key: variant[key] for key in ZERO_SNR if key in variant}
    a = tiny.make_scheduler(**zero_snr).alphas_cumprod.double().numpy()
    if name not in {"DDIM", "DDPM", "LCM", "TCD"}:
        a = a.clip(min=BARELY_HIDDEN)
    if t == round(t):
        return float(a[round(t)] ** 0.5)
    sigma = np.interp(t, range(len(a)), ((1 - a) / a) ** 0.5)
    return float(1 / (1 + sigma**2) ** 0.5)


def by_table(tiny, name, variant, t_0, start_and_noise):
    """sqrt(a) x_start + sqrt(1 - a) eps with a of the timestep t_0 that the UNet is told."""
    at_the_end = name in WHOLE_TIMESTEPS and OWN_SIGMAS & variant.keys()
    kept = share_by_table(tiny, name, variant, 999.0 if at_the_end else t_0)
    x_start, noise = (x.double() for x in start_and_noise)
    return (kept * x_start + (1 - kept**2) ** 0.5 * noise).float()


def noised_by_diffusers(scheduler, start_and_noise, *, begin=0, **schedule):
    """What the scheduler's own noising of x_start at its first timestep shows to the network."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(**schedule)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    t_0 = scheduler.timesteps[begin]
    return scheduler.scale_model_input(scheduler.add_noise(*start_and_noise, t_0[None]), t_0)


def assert_same(seen, expected, message):
    torch.testing.assert_close(seen, expected, rtol=1e-6, atol=1e-6, msg=lambda found: f"{message}\n{found}")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_network_first_sees_x_start_noised(pipeline, start_and_noise, tiny, name):
    for scheduler, variant, label in make_all(tiny, name):
        pipeline.scheduler = scheduler
        # SASolver's add_noise takes a from the timestep, cut to 998; its step takes it from the sigma.
        own_noising_is_right = not (name == "SASolver" and (EXPONENTIAL | BETA).keys() & variant.keys())
        for steps in STEPS:
            latents = start_latents(scheduler, steps, *start_and_noise)
            seen, t_0 = first_input(pipeline, tiny, num_inference_steps=steps, latents=latents)
            message = f"{label} {steps} steps"
            assert_same(seen, by_table(tiny, name, variant, t_0, start_and_noise), message)
            if own_noising_is_right:
                noised = noised_by_diffusers(scheduler, start_and_noise, num_inference_steps=steps)
                assert_same(seen, noised, message)


def first_guess(scheduler, latents, noise, steps):
    """x_0 as the scheduler's own step has it at the start, when the network finds the noise exactly."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    t_0, sample = scheduler.timesteps[0], latents * scheduler.init_noise_sigma
    scheduler.scale_model_input(sample, t_0)
    if hasattr(scheduler, "convert_model_output"):
        scheduler._init_step_index(t_0)
        return scheduler.convert_model_output(noise, sample=sample)
    out = scheduler.step(noise, t_0, sample)
    return out.denoised if hasattr(out, "denoised") else out.pred_original_sample


# Not in it: PNDM and TCD return no guess, and DEIS and DPM-Solver turn the noise into itself.
GUESSING = [name for name in SCHEDULERS if name not in {"PNDM", "TCD", "DEIS", "DPM-Solver"}]


@pytest.mark.parametrize("name", GUESSING)
def test_the_true_noise_leads_the_first_step_to_x_start(start_and_noise, tiny, name):
    x_start, noise = start_and_noise
    for scheduler, variant, label in make_all(tiny, name):
        if (V | ZERO_SNR).keys() & variant.keys():
            continue  # another output, or nothing of x_start to find
        for steps in (20, 50):
            latents = start_latents(scheduler, steps, x_start, noise)
            found = first_guess(scheduler, latents, noise, steps)
            torch.testing.assert_close(found, x_start, rtol=0, atol=3e-5, msg=f"{label} {steps} steps")


def see_custom(pipeline, tiny, scheduler, start_and_noise, **schedule):
    pipeline.scheduler = scheduler
    latents = start_latents(scheduler, 3, *start_and_noise, **schedule)
    return first_input(pipeline, tiny, num_inference_steps=3, latents=latents, **schedule)


@pytest.mark.parametrize("name", accepting("timesteps"))
def test_custom_timesteps(pipeline, start_and_noise, tiny, name):
    schedule = {"timesteps": [939, 499, 99]}
    scheduler = make(tiny, name)
    seen, t_0 = see_custom(pipeline, tiny, scheduler, start_and_noise, **schedule)
    assert t_0 == 939
    assert_same(seen, by_table(tiny, name, {}, t_0, start_and_noise), name)
    assert_same(seen, noised_by_diffusers(scheduler, start_and_noise, **schedule), name)


@pytest.mark.parametrize("sigma", [9.0, 14.0, 40.0])
def test_custom_sigmas(pipeline, start_and_noise, tiny, sigma):
    """Also above the schedule's largest, 14.6."""
    x_start, noise = start_and_noise
    schedule = {"sigmas": [sigma, 3.0, 0.5]}
    scheduler = make(tiny, "Euler")
    seen, _ = see_custom(pipeline, tiny, scheduler, start_and_noise, **schedule)
    assert_same(seen, (x_start + sigma * noise) / (1 + sigma**2) ** 0.5, sigma)
    assert_same(seen, noised_by_diffusers(scheduler, start_and_noise, **schedule), sigma)


def test_every_scheduler_that_takes_sigmas_is_tried():
    assert set(accepting("sigmas")) == {"Euler", "UniPC"}


@pytest.mark.parametrize(
    ("name", "strength"),
    [(name, strength) for name in SCHEDULERS for strength in (0.35, 0.9)],
)
def test_beginning_within_the_schedule(image_to_image, start_and_noise, tiny, name, strength, monkeypatch):
    """Our latents in place of image-to-image's own, which draws the noise and adds it by the scheduler."""
    x_start, _ = start_and_noise
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for scheduler, variant, label in make_all(tiny, name):
        image_to_image.scheduler = scheduler
        call = {"image": x_start, "strength": strength, "num_inference_steps": 20}
        with monkeypatch.context() as patched:
            theirs, _ = first_input(image_to_image, tiny, generator=torch.Generator().manual_seed(1), **call)
            begin = (20 - int(20 * strength)) * scheduler.order
            latents = start_latents(scheduler, 20, x_start, noise, begin=begin)
            patched.setattr(image_to_image, "prepare_latents", lambda *_, latents=latents, **__: latents)
            ours, t_0 = first_input(image_to_image, tiny, **call)
        # SASolver's add_noise goes by the rounded timestep, its step by the sigma, as at the first timestep.
        if name == "SASolver" and OWN_SIGMAS & variant.keys():
            kept, _ = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[begin])
            theirs = kept * x_start + (1 - kept**2).sqrt() * noise
        assert_same(ours, theirs, label)
        found, told = at_first_step(scheduler, 20, begin=begin)
        assert float(told) == t_0
        if not OWN_SIGMAS & variant.keys():
            expected = share_by_table(tiny, name, variant, t_0) ** 2
            assert signal_power(found, told, begin=begin) == pytest.approx(expected, abs=1e-6), label


def test_init_noise_sigma_is_divided_out_at_the_first_timestep_alone(start_and_noise, tiny):
    x_start, noise = start_and_noise
    scheduler = make(tiny, "Euler", "trailing")
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas
    first, second = (start_latents(scheduler, 20, x_start, noise, begin=begin) for begin in (0, 1))
    assert_same(first * sigmas[0], x_start + sigmas[0] * noise, "begin 0")
    assert_same(second, x_start + sigmas[1] * noise, "begin 1")


def test_a_timestep_that_stands_three_times_keeps_its_sigmas(start_and_noise, tiny):
    """Sigmas above the noise schedule's largest are all told as timestep 999."""
    x_start, noise = start_and_noise
    sigmas = [40.0, 30.0, 20.0, 3.0]
    scheduler = make(tiny, "Euler", "trailing")
    scheduler.set_timesteps(sigmas=sigmas)
    assert scheduler.timesteps[:3].tolist() == [999, 999, 999]
    for begin, divided_by in ((0, 40.0), (1, 1.0), (2, 1.0)):
        latents = start_latents(scheduler, None, x_start, noise, sigmas=sigmas, begin=begin)
        assert_same(latents * divided_by, x_start + sigmas[begin] * noise, f"begin {begin}")


@pytest.mark.parametrize("name", ["DDIM", "Euler", "PNDM", "LMS"])
def test_the_scheduler_is_left_alone(start_and_noise, tiny, name):
    scheduler = make(tiny, name)
    scheduler.set_timesteps(7)
    before = copy.deepcopy(vars(scheduler))
    start_latents(scheduler, 20, *start_and_noise, begin=2)
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
    assert start_latents(make(tiny, "Euler"), 20, None, noise, begin=3) is noise


def test_one_start_serves_all_pictures(start_and_noise, tiny):
    x_start, noise = start_and_noise
    scheduler = make(tiny, "Euler")
    one = start_latents(scheduler, 20, x_start[0], noise)
    torch.testing.assert_close(one, start_latents(scheduler, 20, x_start[:1].expand(SHAPE), noise))


FLOW_STARTS = {
    "DPM-Solver++": 1 - 0.001,
    "DPM-Solver++ single": 1 - 0.001,
    "DEIS": 1 - 0.001,
    "SASolver": 1 - 0.001,
    "UniPC": 1 - 1e-6,
}


@pytest.mark.parametrize("name", FLOW_STARTS)
def test_flow_sigmas_mix_linearly(pipeline, start_and_noise, tiny, name):
    x_start, noise = start_and_noise
    for shift in (1.0, 3.0):
        pipeline.scheduler = make(tiny, name, **FLOW, flow_shift=shift)
        sigma = FLOW_STARTS[name]
        # UniPC shifts a first sigma of 1 and then lowers it; the others shift .999.
        sigma = sigma if name == "UniPC" else shift * sigma / (1 + (shift - 1) * sigma)
        latents = start_latents(pipeline.scheduler, 20, x_start, noise)
        seen, _ = first_input(pipeline, tiny, num_inference_steps=20, latents=latents)
        assert_same(seen, (1 - sigma) * x_start + sigma * noise, f"{name} {shift}")
        share = start_share(pipeline.scheduler, 20)
        assert share == pytest.approx(1 - sigma, abs=1e-7)
        assert share < NO_OP_BELOW


def test_flow_sigmas_given_by_the_caller(pipeline, start_and_noise, tiny):
    x_start, noise = start_and_noise
    scheduler = make(tiny, "UniPC", **FLOW)
    given = np.array([0.75, 0.5, 0.25])  # this class cannot take a list
    seen, _ = see_custom(pipeline, tiny, scheduler, start_and_noise, sigmas=given)
    assert_same(seen, 0.25 * x_start + 0.75 * noise, "UniPC")
    for flow in (FlowMatchEulerDiscreteScheduler(), FlowMatchHeunDiscreteScheduler()):
        flow.set_timesteps(10)
        begin = 3 * flow.order
        noised = flow.scale_noise(x_start, flow.timesteps[begin : begin + 1], noise)
        assert_same(start_latents(flow, 10, x_start, noise, begin=begin), noised, type(flow).__name__)
    flow = FlowMatchEulerDiscreteScheduler()
    given = start_latents(flow, None, x_start, noise, sigmas=[0.75, 0.5, 0.25])
    assert_same(given, 0.25 * x_start + 0.75 * noise, "FlowMatchEuler")


@pytest.mark.parametrize(
    ("name", "config", "share"),
    [
        ("DDIM", {}, 0.00466**0.5),
        ("DDIM", ZERO_SNR, 0.0),
        ("DDPM", ZERO_SNR, 0.0),
        ("LCM", ZERO_SNR, 0.0),
        ("TCD", ZERO_SNR, 0.0),
        ("Euler", {}, 0.00466**0.5),
        ("Euler", ZERO_SNR, BARELY_HIDDEN**0.5),
        ("Euler ancestral", ZERO_SNR, BARELY_HIDDEN**0.5),
        ("DPM-Solver++", ZERO_SNR, BARELY_HIDDEN**0.5),
        ("UniPC", ZERO_SNR, BARELY_HIDDEN**0.5),
    ],
)
def test_share_of_the_start_at_the_last_timestep(start_and_noise, tiny, name, config, share):
    x_start, noise = start_and_noise
    scheduler = make(tiny, name, "trailing", **config)
    found = start_share(scheduler, 20)
    assert found == pytest.approx(share, rel=1e-3)
    assert (found < NO_OP_BELOW) == bool(config)
    if config:
        hidden = start_latents(scheduler, 20, x_start, noise)
        torch.testing.assert_close(
            hidden, noise, rtol=0, atol=1.01 * share * float(x_start.abs().max()) + 1e-6
        )


def test_share_of_the_start_within_the_schedule(tiny):
    """Zero terminal SNR hides the start at its last timestep only, flow matching less and less."""
    scheduler = make(tiny, "DDIM", "trailing", **ZERO_SNR)
    assert start_share(scheduler, 20, begin=1) == pytest.approx(float(scheduler.alphas_cumprod[949].sqrt()))
    assert start_share(scheduler, 20, begin=1) > NO_OP_BELOW
    flow = FlowMatchEulerDiscreteScheduler()
    assert start_share(flow, 10) == 0
    assert start_share(flow, None, sigmas=[1.0, 0.75, 0.5], begin=1) == 0.25
    at_939 = share_by_table(tiny, "DDPM", {}, 939)
    assert start_share(make(tiny, "DDPM"), None, timesteps=[939, 499]) == pytest.approx(at_939)


def test_power_of_the_start_with_flow_matching():
    assert signal_power(*at_first_step(FlowMatchEulerDiscreteScheduler(), None, sigmas=[0.75, 0.5])) == 0.0625


def test_bad_shapes_and_schedules_are_refused(start_and_noise, tiny):
    x_start, noise = start_and_noise
    with pytest.raises(ValueError, match=r"shaped like noise \(2, 4, 8, 8\), got \(2, 4, 8, 4\)"):
        start_latents(make(tiny, "DDIM"), 20, x_start[..., :4], noise)
    with pytest.raises(ValueError, match="does not support custom"):
        start_latents(make(tiny, "DDIM"), 3, x_start, noise, timesteps=[9, 5, 1])


@pytest.mark.parametrize("begin", [-1, 20])
def test_a_begin_outside_the_schedule_is_refused(tiny, begin):
    with pytest.raises(ValueError, match=f"begin must be between 0 and 19, got {begin}"):
        at_first_step(make(tiny, "DDIM"), 20, begin=begin)


def test_a_begin_within_a_step_is_refused(start_and_noise, tiny):
    with pytest.raises(ValueError, match="begin must be a multiple of the scheduler's order 2, got 3"):
        start_latents(make(tiny, "Heun"), 20, *start_and_noise, begin=3)


def test_schedulers_of_another_kind_are_refused(start_and_noise):
    with pytest.raises(ValueError, match="Stable Diffusion or flow matching does, got EDMEulerScheduler"):
        start_latents(EDMEulerScheduler(), 20, *start_and_noise)
