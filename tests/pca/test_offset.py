"""The offset target against diffusers' own noising, velocity and loss identities."""

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.pca import offset_target

T = 1000
SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ALPHAS = SCHEDULER.alphas_cumprod
TYPES = ("epsilon", "v_prediction", "sample")


def draw(seed=0, batch=6):
    g = torch.Generator().manual_seed(seed)
    x_0, x_start, noise = (torch.randn(batch, 4, 8, 8, generator=g) for _ in range(3))
    return x_0, x_start, noise, torch.randint(0, T, (batch,), generator=g)


def plain_target(x_0, noise, timesteps, prediction_type):
    if prediction_type == "v_prediction":
        return SCHEDULER.get_velocity(x_0, noise, timesteps)
    return noise if prediction_type == "epsilon" else x_0


def target_of(x_0, x_start, noise, timesteps, *, offset_from=950, prediction_type="epsilon"):
    return offset_target(
        x_0,
        x_start,
        noise,
        timesteps,
        alphas_cumprod=ALPHAS,
        offset_from=offset_from,
        prediction_type=prediction_type,
    )


@pytest.mark.parametrize("prediction_type", TYPES)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_empty_range_is_the_plain_loss_bit_for_bit(prediction_type, seed):
    x_0, x_start, noise, timesteps = draw(seed)
    noisy, target = target_of(x_0, x_start, noise, timesteps, offset_from=T, prediction_type=prediction_type)
    assert torch.equal(noisy, SCHEDULER.add_noise(x_0, noise, timesteps))
    assert torch.equal(target, plain_target(x_0, noise, timesteps, prediction_type))


@pytest.mark.parametrize("prediction_type", TYPES)
def test_start_at_the_picture_itself_is_the_plain_loss_bit_for_bit(prediction_type):
    x_0, _, noise, timesteps = draw()
    noisy, target = target_of(x_0, x_0, noise, timesteps, offset_from=0, prediction_type=prediction_type)
    assert torch.equal(noisy, SCHEDULER.add_noise(x_0, noise, timesteps))
    assert torch.equal(target, plain_target(x_0, noise, timesteps, prediction_type))


@pytest.mark.parametrize("prediction_type", TYPES)
def test_only_timesteps_in_the_range_change(prediction_type):
    x_0, x_start, noise, _ = draw(batch=4)
    timesteps = torch.tensor([0, 949, 950, 999])
    noisy, target = target_of(x_0, x_start, noise, timesteps, prediction_type=prediction_type)
    plain = SCHEDULER.add_noise(x_0, noise, timesteps)
    expected = plain_target(x_0, noise, timesteps, prediction_type)
    assert torch.equal(noisy[:2], plain[:2])
    assert torch.equal(target[:2], expected[:2])
    assert ((noisy[2:] - plain[2:]).flatten(1).abs().amax(1) > 0.01).all()
    if prediction_type != "sample":
        assert ((target[2:] - expected[2:]).flatten(1).abs().amax(1) > 0.01).all()


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31))
def test_noisy_latents_start_at_x_start_and_equal_diffusers_noising_with_the_new_noise(seed):
    x_0, x_start, noise, timesteps = draw(seed)
    noisy, eps_new = target_of(x_0, x_start, noise, timesteps, offset_from=0)
    assert torch.equal(noisy, SCHEDULER.add_noise(x_0, eps_new, timesteps))
    started = SCHEDULER.add_noise(x_start.double(), noise.double(), timesteps)
    scale = (ALPHAS / (1 - ALPHAS)).sqrt()[timesteps].clamp(min=1).view(-1, 1, 1, 1)
    assert ((noisy - started).abs() <= 4e-6 * scale).all()


def test_velocity_is_diffusers_velocity_of_the_new_noise():
    x_0, x_start, noise, timesteps = draw()
    _, eps_new = target_of(x_0, x_start, noise, timesteps, offset_from=0)
    _, v = target_of(x_0, x_start, noise, timesteps, offset_from=0, prediction_type="v_prediction")
    assert torch.equal(v, SCHEDULER.get_velocity(x_0, eps_new, timesteps))


def test_min_snr_identity_holds_inside_the_range():
    x_0, x_start, noise, _ = (t.double() for t in draw())
    timesteps = torch.tensor([941, 950, 960, 970, 980, 999])
    noisy, eps_new = (t.double() for t in target_of(x_0, x_start, noise, timesteps, offset_from=941))
    a = ALPHAS.double()[timesteps].view(-1, 1, 1, 1)
    eps_hat = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1)).double()
    x_0_hat = (noisy - (1 - a).sqrt() * eps_hat) / a.sqrt()
    in_noise = (eps_new - eps_hat).square().flatten(1).sum(1)
    in_pictures = (a / (1 - a)).flatten() * (x_0 - x_0_hat).square().flatten(1).sum(1)
    torch.testing.assert_close(in_noise, in_pictures, rtol=1e-4, atol=0)


def test_unknown_prediction_type_is_refused():
    with pytest.raises(
        ValueError, match="prediction_type must be one of epsilon, v_prediction, sample, got 'x0'"
    ):
        target_of(*draw(), prediction_type="x0")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_schedule_is_refused(dtype):
    with pytest.raises(ValueError, match="alphas_cumprod must be float32 or better, got torch"):
        offset_target(*draw(), alphas_cumprod=ALPHAS.to(dtype), offset_from=950)
