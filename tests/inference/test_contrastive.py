"""Contrastive noise: its loss against a plain sum, what it does to a gallery, what it leaves alone."""

import math

import numpy as np
import pytest
import torch
from onbrand.inference import OffsetStableDiffusionPipeline
from onbrand.inference.contrastive import ContrastiveNoise, contrastive_loss


class Independent:
    def draw(self, num_images, shape, generator):
        return torch.randn(num_images, *shape, generator=generator)


class Linear:
    """Predictions that are a fixed linear map of the noise; counts its calls."""

    def __init__(self, gain=1.0):
        self.gain, self.calls = gain, 0

    def __call__(self, eps):
        self.calls += 1
        return self.gain * eps, None


def seeded():
    return torch.Generator().manual_seed(0)


def similarity(eps):
    unit = eps.flatten(1) / eps.flatten(1).norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    return float((cosines.sum() - len(eps)) / (len(eps) * (len(eps) - 1)))


@pytest.mark.parametrize("gamma", [None, 0.5])
def test_the_loss_is_the_sum_it_says(gamma):
    g = np.random.default_rng(0)
    f, r = g.normal(size=(4, 6)), g.normal(size=(4, 6))
    tau, total = 0.1, 0.0
    positive_tau = tau * (gamma or 1 / (tau * math.log(3) + 1))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    for i in range(4):
        own = math.exp(cosine(f[i], r[i]) / positive_tau)
        others = sum(math.exp(cosine(f[i], f[j]) / tau) for j in range(4) if j != i)
        total -= math.log(own / (own + others)) / 4
    loss = contrastive_loss(torch.tensor(f), torch.tensor(r), temperature=tau, gamma=gamma)
    assert float(loss) == pytest.approx(total, rel=1e-9)


def test_the_noises_move_apart_and_stay_near(generator):
    shared = torch.randn(1, 4, 8, 8, generator=generator)
    eps = 0.7 * shared + math.sqrt(1 - 0.49) * torch.randn(3, 4, 8, 8, generator=generator)
    noise, predict = ContrastiveNoise(Independent(), steps=5, width=8), Linear()
    moved = noise.refine(eps, predict)
    assert predict.calls == 5
    assert similarity(moved) < similarity(eps) - 0.02
    assert (moved - eps).abs().max() < 0.055  # Adam's steps are about the rate
    assert not moved.requires_grad
    assert torch.equal(moved, noise.refine(eps, Linear()))


def test_the_gradient_is_the_gain_times_the_losses(generator):
    """With the gain turned round, a step of Adam, which goes by the gradient's sign, goes the other way."""

    class Turned(Linear):
        def __call__(self, eps):
            return eps, None

    eps = torch.randn(3, 4, 8, 8, generator=generator)
    noise = ContrastiveNoise(Independent(), steps=1, width=8)
    there, back = (noise.refine(eps, Turned(gain)) - eps for gain in (1.0, -1.0))
    assert there.abs().min() > 0.001
    torch.testing.assert_close(back, -there, rtol=1e-3, atol=1e-4)


def test_one_picture_is_left_as_drawn(generator):
    eps, predict = torch.randn(1, 4, 8, 8, generator=generator), Linear()
    assert ContrastiveNoise(Independent()).refine(eps, predict) is eps
    assert predict.calls == 0


def test_the_inner_noise_is_refined_first(generator):
    class Shifting(Independent):
        def refine(self, eps, predict):
            return eps + 1

    eps = torch.randn(2, 4, 8, 8, generator=generator)
    both = ContrastiveNoise(Shifting(), width=8).refine(eps, Linear())
    assert torch.equal(both, ContrastiveNoise(Independent(), width=8).refine(eps + 1, Linear()))


def test_a_prediction_that_does_not_move_with_the_noise_is_told(generator):
    eps = torch.randn(3, 4, 8, 8, generator=generator)
    still = Linear(gain=0.0)
    with pytest.warns(UserWarning, match="contrastive noise changes nothing here"):
        assert ContrastiveNoise(Independent()).refine(eps, still) is eps
    assert still.calls == 0


@pytest.mark.parametrize("prompts", [["", "a mug"], ["a mug", ""]])
def test_an_empty_prompt_beside_negative_ones(tiny, prompts):
    pipe = OffsetStableDiffusionPipeline(**tiny.make_components())
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "num_images_per_prompt": 2, "output_type": "latent"}
    noise = ContrastiveNoise(Independent(), steps=1)
    both = pipe(prompts, negative_prompt=["dark", "small"], noise=noise, generator=seeded(), **call).images
    assert both.shape[0] == 4


def test_through_a_pipeline(tiny):
    pipe = OffsetStableDiffusionPipeline(**tiny.make_components())
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 4, "num_images_per_prompt": 3, "output_type": "latent"}
    plain = pipe("a mug", noise=Independent(), generator=seeded(), **call).images
    moved = pipe("a mug", noise=ContrastiveNoise(Independent(), steps=2), generator=seeded(), **call).images
    assert not torch.equal(plain, moved)
    assert (plain - moved).abs().mean() < 0.2 * plain.abs().mean()


@pytest.mark.parametrize("name", ["steps", "learning_rate", "width", "temperature", "gamma"])
def test_settings_that_are_not_positive_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be positive.*, got 0"):
        ContrastiveNoise(Independent(), **{name: 0})
