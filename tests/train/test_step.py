from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from onbrand.pca import StartDistribution
from onbrand.train.step import StepLoss, min_snr_weights, training_loss

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


class Recorder:
    """Stands for a denoiser: predicts zero and remembers what it was given."""

    def __call__(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, **conditions: torch.Tensor
    ) -> torch.Tensor:
        self.seen, self.timesteps, self.conditions = noisy_latents, timesteps, conditions
        return torch.zeros_like(noisy_latents)


def make_batch(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "latents": torch.randn(6, 4, 8, 8, generator=generator),
        "noise": torch.randn(6, 4, 8, 8, generator=generator),
        "timesteps": torch.tensor([0, 400, 940, 941, 980, 999]),
        "class_ids": torch.tensor([0, 1, 0, 1, 0, 1]),
        "dropped": torch.zeros(6, dtype=torch.bool),
        "input_ids": torch.zeros(6, 1, 3, dtype=torch.long),
    }


def loss_of(
    batch: dict[str, torch.Tensor],
    *,
    offset_from: int,
    prediction_type: str = "epsilon",
    gamma: float | None = None,
    components: int = 0,
) -> tuple[StepLoss, Recorder, StartDistribution]:
    start = StartDistribution.fit(
        batch["latents"],
        batch["class_ids"],
        class_names=["a", "b"],
        components=components,
        offset_from=offset_from,
    )
    denoiser = Recorder()
    result = training_loss(
        batch,
        denoiser=denoiser,
        start_distribution=start,
        alphas_cumprod=SCHEDULER.alphas_cumprod,
        offset_from=offset_from,
        prediction_type=prediction_type,
        min_snr_gamma=gamma,
    )
    return result, denoiser, start


def test_without_an_offset_range_it_is_the_plain_loss(generator: torch.Generator) -> None:
    batch = make_batch(generator)
    result, denoiser, _ = loss_of(batch, offset_from=1000)
    assert torch.equal(
        denoiser.seen, SCHEDULER.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    )
    assert torch.equal(denoiser.timesteps, batch["timesteps"])
    assert torch.equal(result.per_sample, batch["noise"].pow(2).mean(dim=(1, 2, 3)))
    assert torch.equal(result.loss, result.per_sample.mean())


def test_the_plain_loss_under_v_prediction(generator: torch.Generator) -> None:
    batch = make_batch(generator)
    result, _, _ = loss_of(batch, offset_from=1000, prediction_type="v_prediction")
    velocity = SCHEDULER.get_velocity(batch["latents"], batch["noise"], batch["timesteps"])
    torch.testing.assert_close(result.per_sample, velocity.pow(2).mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("components", [0, 1])
def test_inside_the_range_the_network_is_shown_the_start(generator: torch.Generator, components: int) -> None:
    batch = make_batch(generator)
    _, denoiser, start = loss_of(batch, offset_from=941, components=components)
    x_start = start.project(batch["latents"], batch["class_ids"])
    if not components:
        assert torch.equal(x_start, start.mean[batch["class_ids"]])
    from_start = SCHEDULER.add_noise(x_start, batch["noise"], batch["timesteps"])
    plain = SCHEDULER.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    torch.testing.assert_close(denoiser.seen[3:], from_start[3:], rtol=0, atol=2e-6)
    assert torch.equal(denoiser.seen[:3], plain[:3])
    assert not torch.allclose(denoiser.seen[3:], plain[3:], atol=1e-3)


def test_text_and_conditions_reach_the_denoiser_and_nothing_else_does(generator: torch.Generator) -> None:
    batch = make_batch(generator)
    _, denoiser, _ = loss_of(batch, offset_from=941)
    assert set(denoiser.conditions) == {"input_ids", "dropped"}
    more = {"hidden": torch.ones(6, 3, 2), "pooled": torch.ones(6, 2), "condition": torch.ones(6, 3, 8, 8)}
    extra = {"weights": torch.ones(6), "rows": torch.arange(6)}
    _, denoiser, _ = loss_of(batch | more | extra, offset_from=941)
    assert set(denoiser.conditions) == {"input_ids", "dropped", "hidden", "pooled", "condition"}
    for key, value in denoiser.conditions.items():
        assert value is (batch | more)[key], key


def test_the_loss_has_a_gradient_and_the_metrics_have_none(generator: torch.Generator) -> None:
    batch = make_batch(generator)
    scale = torch.tensor(0.5, requires_grad=True)
    start = SimpleNamespace(project=lambda latents, class_ids, **_: latents)
    loss, per_sample = training_loss(
        batch,
        denoiser=lambda noisy_latents, timesteps, **_: scale * noisy_latents,
        start_distribution=start,
        alphas_cumprod=SCHEDULER.alphas_cumprod,
        offset_from=1000,
        prediction_type="epsilon",
    )
    assert not per_sample.requires_grad
    (slope,) = torch.autograd.grad(loss, scale)
    noisy = SCHEDULER.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    torch.testing.assert_close(slope, (2 * noisy * (0.5 * noisy - batch["noise"])).mean())


def test_a_half_precision_prediction_is_compared_in_float32(generator: torch.Generator) -> None:
    batch = make_batch(generator) | {"noise": torch.full((6, 4, 8, 8), 300.0)}
    start = SimpleNamespace(project=lambda latents, class_ids, **_: latents)
    result = training_loss(
        batch,
        denoiser=lambda noisy_latents, timesteps, **_: torch.zeros_like(noisy_latents, dtype=torch.float16),
        start_distribution=start,
        alphas_cumprod=SCHEDULER.alphas_cumprod,
        offset_from=1000,
        prediction_type="epsilon",
    )
    assert result.per_sample.tolist() == [90000.0] * 6  # above float16's largest number


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_offset_loss_as_the_plain_one(
    generator: torch.Generator, prediction_type: str
) -> None:
    batch = make_batch(generator)
    for offset_from in (941, 1000):
        weighed, _, _ = loss_of(batch, offset_from=offset_from, prediction_type=prediction_type, gamma=5.0)
        plain, _, _ = loss_of(batch, offset_from=offset_from, prediction_type=prediction_type)
        assert torch.equal(weighed.per_sample, plain.per_sample)
        snr = compute_snr(SCHEDULER, batch["timesteps"])
        expected = (
            snr.clamp(max=5.0) / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
        )
        torch.testing.assert_close(weighed.loss, (expected * weighed.per_sample).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_is_finite_at_zero_snr(prediction_type: str) -> None:
    alphas_cumprod = torch.tensor([0.5, 0.0])
    weights = min_snr_weights(
        torch.tensor([0, 1]), alphas_cumprod=alphas_cumprod, gamma=5.0, prediction_type=prediction_type
    )
    assert weights.isfinite().all()


def test_the_start_is_told_the_text_of_its_pictures(generator: torch.Generator) -> None:
    batch = make_batch(generator) | {"text_embeds": torch.randn(6, 3, generator=generator)}
    told = []

    def project(latents: torch.Tensor, class_ids: torch.Tensor, *, text_embeds: torch.Tensor) -> torch.Tensor:
        told.append(text_embeds)
        return latents

    training_loss(
        batch,
        denoiser=lambda noisy_latents, timesteps, **conditions: noisy_latents * len(conditions),
        start_distribution=SimpleNamespace(project=project),
        alphas_cumprod=SCHEDULER.alphas_cumprod,
        offset_from=941,
        prediction_type="epsilon",
    )
    assert len(told) == 1
    assert told[0] is batch["text_embeds"]
