"""Direct noise optimisation: scipy's chi density, and what the steps do to a gallery."""

import pytest
import torch
from onbrand.evaluation.gallery_rewards import ssim_diversity
from onbrand.inference import OffsetStableDiffusionPipeline
from onbrand.inference.noise_optimisation import norm_penalty, optimise_noise, reward_of
from onbrand.inference.skip_gradient import gallery
from onbrand.pca import Sampler
from scipy import stats

SAMPLER = Sampler("DDIMScheduler", 2)


@pytest.fixture(scope="module")
def pipe(tiny):
    return OffsetStableDiffusionPipeline(**tiny.make_components())


@pytest.fixture
def eps(generator):
    return torch.randn(3, 4, 8, 8, generator=generator)


def similarity(pipe, eps):
    return float(-ssim_diversity(gallery(pipe, "a mug", eps, sampler=SAMPLER)))


def test_the_penalty_is_the_chi_density():
    eps = torch.randn(5, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    eps = eps * torch.linspace(0.3, 2, 5)[:, None, None, None]
    norms, chi = eps.flatten(1).norm(dim=1).numpy(), stats.chi(18)
    torch.testing.assert_close(
        norm_penalty(eps), torch.from_numpy(chi.logpdf(17**0.5) - chi.logpdf(norms)), rtol=1e-9, atol=1e-9
    )


def test_the_penalty_is_half_on_average_whatever_the_size(generator):
    for d in (64, 4096):
        drawn = norm_penalty(torch.randn(4000, d, generator=generator))
        assert float(drawn.mean()) == pytest.approx(0.5, abs=0.06)  # its mean's deviation is .011


def test_the_gallery_earns_more(pipe, eps):
    told = []
    settings = {"steps": 6, "learning_rate": 0.02, "sampler": SAMPLER, "advance": told.append}
    moved = optimise_noise(pipe, "a mug", eps.clone().requires_grad_(), ssim_diversity, **settings)
    assert told == [1] * 7
    assert similarity(pipe, moved) < similarity(pipe, eps) - 0.03
    assert (moved - eps).abs().max() < 6 * 0.021  # Adam's steps are about the rate
    assert norm_penalty(moved).max() < 2
    assert moved.dtype == torch.float32
    assert not moved.requires_grad
    assert torch.equal(moved, optimise_noise(pipe, "a mug", eps, ssim_diversity, **settings))


def test_of_steps_that_only_lose_the_first_noise_is_kept(pipe, eps):
    def highest_first():
        values = iter((3.0, 2.0, 1.0))
        return lambda pixels: next(values) + 0 * pixels.sum()

    how = {"steps": 2, "norm_weight": 0, "sampler": SAMPLER}
    assert torch.equal(optimise_noise(pipe, "a mug", eps, highest_first(), **how), eps)


def test_no_steps_leave_the_noise(pipe, eps):
    assert torch.equal(optimise_noise(pipe, "a mug", eps, ssim_diversity, steps=0, sampler=SAMPLER), eps)


def test_a_heavy_penalty_brings_the_norm_back(pipe, eps):
    how = {"steps": 10, "learning_rate": 0.05, "sampler": SAMPLER}
    kept = optimise_noise(pipe, "a mug", 1.2 * eps, ssim_diversity, norm_weight=10.0, **how)
    assert norm_penalty(1.2 * eps).max() > 15
    assert norm_penalty(kept).max() < 1


@pytest.mark.filterwarnings("ignore:EulerAncestral")
def test_what_the_sampler_adds_is_the_same_every_time(pipe, eps):
    """With noise of its own in every step, equal noises give equal rewards, so nothing seems better."""
    seen = []

    def reward(pixels):
        seen.append(pixels.detach().clone())
        return 0 * pixels.sum()

    how = {"steps": 1, "norm_weight": 0, "sampler": Sampler("EulerAncestralDiscreteScheduler", 2)}
    optimise_noise(pipe, "a mug", eps, reward, seed=1, **how)
    optimise_noise(pipe, "a mug", eps, reward, seed=2, **how)
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2], atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"norm_weight": -0.5}, "norm_weight must be at least 0, got -0.5"),
        ({"learning_rate": 0}, "learning_rate must be positive, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(pipe, eps, settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        optimise_noise(pipe, "a mug", eps, ssim_diversity, **settings)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda pixels: 0.5, "reward must be a scalar tensor, got float"),
        (lambda pixels: pixels.mean(dim=(1, 2)), r"reward must be a scalar tensor, got \(2, 4\)"),
        (
            lambda pixels: pixels.detach().mean(),
            "reward must be differentiable in the pixels, got a tensor without gradient",
        ),
        (lambda pixels: pixels.mean() / 0, "reward must be finite, got inf"),
    ],
)
def test_what_is_no_reward_is_refused(reward, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        reward_of(reward, torch.ones(2, 3, 4, 4, requires_grad=True))
