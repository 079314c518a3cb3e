from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from onbrand.pca import StartDistribution
from onbrand.train.step import min_snr_weights, training_loss

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


class Recorder(torch.nn.Module):
    """Stands for a UNet: predicts zero and remembers what it was shown."""

    def forward(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor
    ) -> SimpleNamespace:
        self.seen = noisy_latents
        return SimpleNamespace(sample=torch.zeros_like(noisy_latents))


def make_batch(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "latents": torch.randn(6, 4, 8, 8, generator=generator),
        "noise": torch.randn(6, 4, 8, 8, generator=generator),
        "timesteps": torch.tensor([0, 400, 940, 941, 980, 999]),
        "class_ids": torch.tensor([0, 1, 0, 1, 0, 1]),
        "input_ids": torch.zeros(6, 3, dtype=torch.long),
    }


def loss_of(batch: dict, *, offset_from: int, prediction_type: str = "epsilon", gamma: float | None = None):
    start = StartDistribution.fit(
        batch["latents"], batch["class_ids"], class_names=["a", "b"], components=0, offset_from=offset_from
    )
    unet = Recorder()
    result = training_loss(
        batch,
        unet=unet,
        text_encoder=lambda ids: (ids.float(),),
        start_distribution=start,
        alphas_cumprod=SCHEDULER.alphas_cumprod,
        offset_from=offset_from,
        prediction_type=prediction_type,
        min_snr_gamma=gamma,
    )
    return result, unet.seen, start


def test_without_an_offset_range_it_is_the_plain_loss(generator: torch.Generator) -> None:
    batch = make_batch(generator)
    result, seen, _ = loss_of(batch, offset_from=1000)
    assert torch.equal(seen, SCHEDULER.add_noise(batch["latents"], batch["noise"], batch["timesteps"]))
    assert torch.equal(result.per_sample, batch["noise"].pow(2).mean(dim=(1, 2, 3)))


def test_inside_the_range_the_network_is_shown_the_class_mean(generator: torch.Generator) -> None:
    batch = make_batch(generator)
    _, seen, start = loss_of(batch, offset_from=941)
    from_mean = SCHEDULER.add_noise(start.mean[batch["class_ids"]], batch["noise"], batch["timesteps"])
    plain = SCHEDULER.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    torch.testing.assert_close(seen[3:], from_mean[3:], rtol=0, atol=2e-6)
    assert torch.equal(seen[:3], plain[:3])
    assert not torch.allclose(seen[3:], plain[3:], atol=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_offset_loss_as_the_plain_one(
    generator: torch.Generator, prediction_type: str
) -> None:
    batch = make_batch(generator)
    for offset_from in (941, 1000):
        weighed, _, _ = loss_of(batch, offset_from=offset_from, prediction_type=prediction_type, gamma=5.0)
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
