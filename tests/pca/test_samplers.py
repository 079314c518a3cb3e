"""First timesteps and the offset range, from diffusers' real schedulers."""

import copy

import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from onbrand.pca import DEFAULT_SAMPLERS, Sampler, build_scheduler, first_timestep, offset_from

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


@pytest.fixture
def checkpoint():
    return DDPMScheduler(**SD)


@pytest.mark.parametrize(
    ("scheduler", "steps", "expected"),
    [
        *[("DPMSolverMultistepScheduler", *pair) for pair in [(20, 941), (25, 951), (28, 953)]],
        *[("DPMSolverMultistepScheduler", *pair) for pair in [(30, 961), (50, 951)]],
        *[("UniPCMultistepScheduler", *pair) for pair in [(20, 941), (25, 951), (28, 953)]],
        *[("DDIMScheduler", *pair) for pair in [(20, 951), (28, 946), (30, 958)]],
    ],
)
def test_first_timesteps_with_leading_spacing(checkpoint, scheduler, steps, expected):
    assert first_timestep(build_scheduler(checkpoint, Sampler(scheduler, steps)), steps) == expected


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_other_spacings_start_at_the_end(checkpoint, spacing):
    sampler = Sampler("DPMSolverMultistepScheduler", 4, spacing)
    assert first_timestep(build_scheduler(checkpoint, sampler), 4) == 999


def test_the_spacing_is_the_checkpoints_own_even_where_it_is_a_default():
    defaulted = DDIMScheduler(**{key: value for key, value in SD.items() if key != "timestep_spacing"})
    built = build_scheduler(defaulted, Sampler("DPMSolverMultistepScheduler", 20))
    assert built.config.timestep_spacing == defaulted.config.timestep_spacing == "leading"


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler"])
def test_latents_are_not_clipped_where_the_checkpoint_says_nothing_of_it(name):
    ours = build_scheduler(EulerDiscreteScheduler(), Sampler(name, 20)).config
    assert ours.clip_sample is False
    assert ours.get("set_alpha_to_one", False) is False
    assert build_scheduler(ours, Sampler(name, 20)).config.clip_sample is False  # named, so it is kept


def test_settings_that_a_pipeline_put_right_are_kept_though_they_were_defaults():
    scheduler = DDIMScheduler()
    scheduler.register_to_config(clip_sample=False, steps_offset=1)
    config = {**scheduler.config, "_use_default_values": ["clip_sample", "steps_offset", "set_alpha_to_one"]}
    ours = build_scheduler(config, Sampler("DDIMScheduler", 20)).config
    assert (ours.clip_sample, ours.steps_offset, ours.set_alpha_to_one) == (False, 1, True)


def test_first_timestep_leaves_the_scheduler_alone(checkpoint):
    checkpoint.set_timesteps(7)
    before = copy.deepcopy(checkpoint.timesteps)
    first_timestep(checkpoint, 20)
    assert checkpoint.timesteps.tolist() == before.tolist()


def test_offset_range_covers_skip_interval_and_declared_samplers(checkpoint):
    assert offset_from(checkpoint) == 941
    assert offset_from(checkpoint.config) == 941
    assert offset_from(checkpoint, []) == 950
    assert offset_from(checkpoint, [], skip_interval=80) == 920
    assert offset_from(checkpoint, [("DDIMScheduler", 28, None)]) == 946
    assert offset_from(checkpoint, [Sampler("DDIMScheduler", 30)]) == 950
    trailing = [Sampler(s.scheduler, s.steps, "trailing") for s in DEFAULT_SAMPLERS]
    assert offset_from(checkpoint, trailing) == 950


def test_no_skip_interval_is_an_empty_range(checkpoint):
    assert offset_from(checkpoint, skip_interval=0) == 1000


def test_a_low_range_is_refused_with_the_way_to_have_it(checkpoint):
    few = [Sampler("DDIMScheduler", 4)]
    match = (
        r"offset range must start at 0.9 T = 900 or later, got 751 \(DDIMScheduler at 4 steps, leading "
        r"spacing\): use trailing spacing or more steps, or set start.offset_from$"
    )
    with pytest.raises(ValueError, match=match):
        offset_from(checkpoint, few)
    assert offset_from(checkpoint, [Sampler("DDIMScheduler", 10)]) == 901
    with pytest.raises(ValueError, match=r"got 800 \(skip_interval = 200\)"):
        offset_from(checkpoint, [], skip_interval=200)


def test_bad_declarations_are_refused(checkpoint):
    with pytest.raises(ValueError, match=r"nearest: DDIMScheduler\), got 'DDIMSchedular'"):
        offset_from(checkpoint, [Sampler("DDIMSchedular", 20)])
    with pytest.raises(ValueError, match="spacing must be one of leading, trailing, linspace, got 'log'"):
        offset_from(checkpoint, [Sampler("DDIMScheduler", 20, "log")])
    with pytest.raises(
        ValueError, match="spacing must be None for CMStochasticIterativeScheduler, got 'leading'"
    ):
        build_scheduler(checkpoint, Sampler("CMStochasticIterativeScheduler", 20, "leading"))
    with pytest.raises(ValueError, match="steps must be a positive integer, got 0"):
        first_timestep(checkpoint, 0)
    with pytest.raises(ValueError, match=r"skip_interval must be in \[0, 1000\], got 1001"):
        offset_from(checkpoint, skip_interval=1001)


def test_flow_matching_has_a_first_timestep_too():
    assert first_timestep(FlowMatchEulerDiscreteScheduler(), 10) == 1000
