"""The maths of one aggregated step, by hand and against the schedulers' own steps."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.inference.aggregation.step import (
    KINDS,
    PAPER,
    coefficients,
    combine,
    correct,
    mean_of_step,
    rescaled,
)

SHAPE = (3, 4, 8, 8)


def latents(seed=0, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(*values):
    """One sample of so many values."""
    return torch.tensor(values).reshape(1, 1, 1, -1)


def test_two_models_by_hand():
    x, y = sample(3.0, 0.0), sample(0.0, 5.0)
    assert torch.allclose(combine([x, y], [0.6]), sample(1.8, 4.0))
    # from (1.8, 4) to the means (1.8, 0) and (4.8, 0), a step of sqrt(2) in units of sqrt(2) values
    moved = correct(sample(1.8, 4.0), [sample(1.8, 0.0), sample(4.8, 0.0)], [math.sqrt(2), 10.0])
    assert torch.allclose(moved, torch.stack([sample(1.8, 2.0), sample(4.8, 0.0)]))


def test_three_models_by_hand():
    x = [sample(1.0, 0.0, 0.0), sample(0.0, 1.0, 0.0), sample(0.0, 0.0, 1.0)]
    assert torch.allclose(combine(x, [0.6, 0.8]), sample(0.48, 0.64, 0.6))
    assert torch.allclose(combine(x, [0.6, 0.8], "authors"), sample(0.48, 0.64, 0.48))
    # at the paper's weights the authors' sum is shorter, .83 in squares
    assert sum(c**2 for c in coefficients(*[PAPER[3][0]])) == pytest.approx(1)
    assert sum(c**2 for c in coefficients(PAPER[3][0], "authors")) == pytest.approx(0.834, abs=5e-4)


def test_the_papers_step_sizes_in_latents_of_stable_diffusion():
    x = torch.zeros(1, 4, 64, 64)
    mean = torch.full_like(x, 3.0)  # 384 away
    for sizes, absolute in (([*PAPER[2][1]], (45, 55)), ([*PAPER[3][1]], (45, 40, 35))):
        moved = correct(x, [mean] * len(sizes), sizes)
        assert [float(m.norm()) for m in moved] == pytest.approx(absolute)


@pytest.mark.parametrize("kind", KINDS)
def test_at_weight_1_or_0_one_model_is_left(kind):
    if kind == "authors":
        x = [latents(i) for i in range(3)]
        assert torch.equal(combine(x, [1.0, 1.0], kind), x[0])
        assert torch.equal(combine(x, [0.0, 0.0], kind), x[2])
        return
    x = [latents(0), latents(1)]
    assert torch.equal(combine(x, [1.0], kind), x[0])
    torch.testing.assert_close(combine(x, [0.0], kind), x[1])


@settings(max_examples=30, deadline=None)
@given(w=st.floats(0, 1))
def test_identical_latents_come_out_longer_unless_turned_or_rescaled(w):
    x = latents()
    torch.testing.assert_close(combine([x, x], [w]), (w + math.sqrt(1 - w**2)) * x)
    for kind in ("slerp", "rescaled"):
        torch.testing.assert_close(combine([x, x], [w], kind), x)


@settings(max_examples=30, deadline=None)
@given(w=st.floats(0, 1), angle=st.floats(0.01, 3.0))
def test_slerp_stays_on_the_sphere_and_turns_evenly(w, angle):
    x, y = sample(1.0, 0.0), sample(math.cos(angle), math.sin(angle))
    turned = angle * 2 / math.pi * math.acos(w)  # a right angle has cos = w
    torch.testing.assert_close(
        combine([x, y], [w], "slerp"), sample(math.cos(turned), math.sin(turned)), atol=1e-4, rtol=0
    )


def test_all_kinds_agree_on_orthogonal_latents():
    x, y = latents(), torch.zeros(SHAPE)
    y[..., ::2], x[..., ::2] = x[..., ::2], 0
    expected = combine([x, y], [0.45])
    for kind in ("slerp", "rescaled"):
        torch.testing.assert_close(combine([x, y], [0.45], kind), expected)


def test_rescaling_gives_every_sample_its_own_length():
    x = latents() * torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(rescaled(x * 0.1, [x, x], [0.6, 0.8]), x)
    assert torch.equal(rescaled(torch.zeros(SHAPE), [x, x], [0.6, 0.8]), torch.zeros(SHAPE))


@settings(max_examples=30, deadline=None)
@given(size=st.floats(0, 3), apart=st.floats(0, 3))
def test_the_correction_goes_its_way_and_never_past_the_mean(size, apart):
    mean, away = latents(0), latents(1)
    away = away / away.flatten(1).norm(dim=1).reshape(3, 1, 1, 1) * 16  # sqrt(d)
    (moved,) = correct(mean + apart * away, [mean], [size])
    torch.testing.assert_close(moved, mean + max(apart - size, 0) * away, atol=1e-4, rtol=1e-4)


def test_the_correction_is_exact_at_both_ends_and_apart_for_each_sample():
    x, mean = latents(0), latents(1)
    mean[1] = x[1]
    assert torch.equal(correct(x, [mean], [0.0])[0], x)
    assert torch.equal(correct(x, [mean], [math.inf])[0], mean)
    together = correct(x, [mean], [0.3])[0]
    assert torch.equal(together[1], x[1])
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], correct(x[i : i + 1], [mean[i : i + 1]], [0.3])[0])


def step(scheduler, prediction_type, monkeypatch, *, noise, **how):
    """The scheduler, what a step of it gives, and what it was called with."""
    scheduler = scheduler(prediction_type=prediction_type, clip_sample=True, **how.pop("config", {}))
    scheduler.set_timesteps(10)
    called = (latents(3), scheduler.timesteps[4], latents(4))
    for module in (scheduling_ddim, scheduling_ddpm):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.full(shape, noise))
    return scheduler, scheduler.step(*called, **how, return_dict=False), called


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("scheduler", "how"),
    [(DDPMScheduler, {}), (DDIMScheduler, {"eta": 0.5}), (DDIMScheduler, {"use_clipped_model_output": True})],
)
def test_the_mean_is_the_step_without_its_noise(scheduler, how, prediction_type, monkeypatch):
    _, expected, _ = step(scheduler, prediction_type, monkeypatch, noise=0.0, **how)
    made, stepped, called = step(scheduler, prediction_type, monkeypatch, noise=1.0, **how)
    mean = mean_of_step(made, stepped, *called, **how)
    torch.testing.assert_close(mean, expected[0])
    if "use_clipped_model_output" in how:
        assert mean is stepped[0]
    else:
        assert (stepped[0] - mean).min() > 0.01  # so the noise was there to be left out


def test_the_last_ddpm_step_has_the_predicted_picture_for_a_mean():
    scheduler = DDPMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[-1]
    stepped = scheduler.step(latents(1), t, latents(2), return_dict=False)
    assert int(t) == 0
    torch.testing.assert_close(mean_of_step(scheduler, stepped, latents(1), t, latents(2)), stepped[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: combine([x, x], [1.2]), r"weights must be in \[0, 1\], got 1.2"),
        (lambda x: combine([x, x], [math.nan]), r"weights must be in \[0, 1\], got nan"),
        (lambda x: combine([x, x], [0.5, 0.5]), "weights must be 1, one fewer than models, got 2"),
        (lambda x: combine([x, x], [0.5], "mean"), "kind must be one of nested, authors, .*, got 'mean'"),
        (lambda x: combine([x, x], [0.5], "authors"), "must have three models and two weights, got 1"),
        (lambda x: coefficients([0.5], "slerp"), "kind must be nested, .* coefficients, got 'slerp'"),
        (lambda x: correct(x, [x, x], [0.1]), "step_sizes must be 2, one a model, got 1"),
        (lambda x: correct(x, [x], [-0.1]), "step_sizes must be at least 0, got -0.1"),
        (lambda x: correct(x, [x], [math.nan]), "step_sizes must be at least 0, got nan"),
        (
            lambda x: mean_of_step(EulerDiscreteScheduler(), (x, x), x, 1, x),
            "scheduler must be DDIMScheduler or DDPMScheduler, .*, got EulerDiscreteScheduler",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(latents())
