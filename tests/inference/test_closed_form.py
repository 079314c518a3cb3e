"""The exact denoiser: against sums written out, in the limits, with a start, and in a UNet's place."""

from itertools import pairwise

import pytest
import torch
from diffusers import StableDiffusionPipeline
from onbrand.inference import OffsetStableDiffusionPipeline, closed_form
from onbrand.inference.closed_form import OptimalDenoiser, optimal_eps, optimal_x_0
from onbrand.inference.inversion import invert
from onbrand.pca import Sampler, StartDistribution
from torch.distributions import MultivariateNormal

SHAPE = (4, 8, 8)
PICTURES = 12


@pytest.fixture
def latents(generator):
    return torch.randn(PICTURES, *SHAPE, generator=generator)


@pytest.fixture
def class_ids():
    return torch.arange(PICTURES) % 3


@pytest.fixture
def batches(latents, class_ids):
    """Of unequal sizes, one empty."""
    cuts = [0, 5, 5, 7, PICTURES]
    return [(latents[i:j], class_ids[i:j]) for i, j in pairwise(cuts)]


def start_of(latents, class_ids, *, components=0, **options):
    names = ["mug", "hat", "bag"]
    return StartDistribution.fit(latents, class_ids, class_names=names, components=components, **options)


def noisy(latents, a, generator):
    noise = torch.randn(latents.shape, generator=generator)
    return a**0.5 * latents + (1 - a) ** 0.5 * noise


def by_density(x, latents, shown, a):
    """E[x_0 | x] with torch's own Gaussian densities around each picture, all pictures at once."""
    x, latents, shown = (each.double().flatten(1) for each in (x, latents, shown))
    spread = (1 - a) * torch.eye(x.shape[1], dtype=torch.float64)
    densities = [MultivariateNormal(a**0.5 * y, spread).log_prob(x) for y in shown]
    weights = torch.softmax(torch.stack(densities, dim=1), dim=1)
    return (weights @ latents).view(-1, *SHAPE)


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("a", [0.0, 1e-4, 0.004, 0.02, 0.5])
def test_it_is_the_mean_over_pictures_by_their_density(monkeypatch, latents, batches, generator, a, chunk):
    monkeypatch.setattr(closed_form, "CHUNK", chunk)
    x = noisy(latents[:3], a, generator)
    expected = by_density(x, latents, latents, a)
    found = optimal_x_0(x, batches, a)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    eps = (x.double() - a**0.5 * expected) / (1 - a) ** 0.5
    torch.testing.assert_close(optimal_eps(x, iter(batches), a), eps, atol=1e-9, rtol=1e-9)
    assert torch.equal(found, optimal_x_0(x, iter(batches), a))


def test_some_of_these_noise_levels_are_undecided(latents, batches, generator):
    """The comparison above is of weights that really mix pictures."""
    x = noisy(latents[:3], 0.004, generator)
    gaps = (optimal_x_0(x, batches, 0.004)[:, None] - latents).flatten(2).norm(dim=2)
    assert gaps.min() > 1


def test_it_minimises_the_training_loss(latents, batches, generator):
    """The same noise levels, drawn many times: no scaling or shift of its answer is nearer eps."""
    a = 0.02
    picked = torch.randint(PICTURES, (4000,), generator=generator)
    noise = torch.randn(4000, *SHAPE, generator=generator).double()
    x = a**0.5 * latents[picked] + (1 - a) ** 0.5 * noise
    eps = optimal_eps(x, batches, a)

    def loss(prediction):
        return (prediction - noise).square().flatten(1).sum(dim=1).mean()

    other = (x - a**0.5 * latents.mean(dim=0)) / (1 - a) ** 0.5
    assert loss(eps) < loss(other)
    for share in (-0.05, 0.05):
        assert loss(eps) < loss(eps + share * (other - eps))


def test_one_picture_is_always_the_answer(latents, class_ids, generator):
    x = torch.randn(2, *SHAPE, generator=generator)
    for a in (0.0, 1e-9, 0.5, 1 - 1e-9):
        found = optimal_x_0(x, [(latents[:1], class_ids[:1])], a)
        torch.testing.assert_close(found, latents[:1].double().expand(2, -1, -1, -1))


def test_the_limits_of_noise(latents, batches, generator):
    x = torch.randn(1, *SHAPE, generator=generator)
    mean = latents.double().mean(dim=0, keepdim=True)
    torch.testing.assert_close(optimal_x_0(x, batches, 0.0), mean)
    torch.testing.assert_close(optimal_eps(x, batches, 0.0), x.double())
    almost_clean = latents[3:4] + 1e-5 * x
    for a in (1 - 1e-6, 1 - 1e-14):
        nearest = optimal_x_0(almost_clean, batches, a)
        torch.testing.assert_close(nearest, latents[3:4].double())
        assert optimal_eps(almost_clean, batches, a).isfinite().all()
    far = 1e6 * x
    assert optimal_x_0(far, batches, 1 - 1e-9).isfinite().all()


def test_no_gradient_is_kept(latents, batches):
    x = latents[:1].clone().requires_grad_()
    assert not optimal_eps(x, batches, 0.5).requires_grad


def test_a_class_alone(latents, class_ids, batches, generator):
    x = noisy(latents[:2], 0.004, generator)
    own = latents[class_ids == 1]
    found = optimal_x_0(x, batches, 0.004, class_id=1)
    torch.testing.assert_close(found, by_density(x, own, own, 0.004), atol=1e-9, rtol=1e-9)


def test_from_the_class_mean_the_answer_is_the_class_mean(latents, class_ids, batches, generator):
    """Where every picture starts from the same point the noisy latents say nothing but the class."""
    start = start_of(latents, class_ids)
    x = torch.randn(2, *SHAPE, generator=generator)
    mean = latents[class_ids == 2].double().mean(dim=0)
    found = optimal_x_0(x, batches, 0.3, start=start, class_id=2)
    torch.testing.assert_close(found, mean.expand(2, -1, -1, -1), atol=1e-12, rtol=1e-12)
    any_class = optimal_x_0(start.mean[:1] * 0.3**0.5, batches, 0.3, start=start)
    torch.testing.assert_close(any_class[0], latents[class_ids == 0].double().mean(dim=0))


@pytest.mark.parametrize(
    "family", [{"components": 2}, {"family": "dct", "band": 2}, {"family": "diagonal"}, {"family": "pooled"}]
)
@pytest.mark.parametrize("class_id", [None, 0])
def test_with_a_start_pictures_are_told_apart_by_their_projections(
    latents, class_ids, batches, generator, family, class_id
):
    start = start_of(latents, class_ids, **family)
    shown = start.project(latents, class_ids)
    x = noisy(shown[:2], 0.01, generator)
    kept = class_ids == class_id if class_id is not None else slice(None)
    expected = by_density(x, latents[kept], shown[kept], 0.01)
    found = optimal_x_0(x, batches, 0.01, start=start, class_id=class_id)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_start_that_depends_on_text(latents, class_ids, generator):
    embeds = torch.randn(PICTURES, 5, generator=generator)
    start = start_of(latents, class_ids, components=2, family="text", text_embeds=embeds)
    shown = start.project(latents, class_ids, text_embeds=embeds)
    x = noisy(shown[:2], 0.01, generator)
    told = [(latents[:7], class_ids[:7], embeds[:7]), (latents[7:], class_ids[7:], embeds[7:])]
    expected = by_density(x, latents, shown, 0.01)
    torch.testing.assert_close(optimal_x_0(x, told, 0.01, start=start), expected, atol=1e-6, rtol=1e-6)
    message = "batches must hold text_embeds for a start that depends on text, got none"
    with pytest.raises(ValueError, match=message):
        optimal_x_0(x, [(latents, class_ids)], 0.01, start=start)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_predictions_are_those_that_the_scheduler_reads(tiny, latents, class_ids, batches, generator, kind):
    """Each row at its own timestep, on both sides of the offset range; diffusers makes x_0 of them again."""
    scheduler = tiny.make_scheduler(prediction_type=kind)
    scheduler.set_timesteps(20)
    start = start_of(latents, class_ids, components=1, offset_from=901)
    denoiser = OptimalDenoiser(batches, scheduler, start=start).of_class(1)
    timesteps = torch.tensor([951, 801, 951])
    x = torch.randn(3, *SHAPE, generator=generator)
    (found,) = denoiser(x, timesteps, encoder_hidden_states=None, return_dict=False)
    assert found.dtype == torch.float32
    for row, t in enumerate(timesteps):
        inside = {"start": start} if t >= 901 else {}
        a = float(scheduler.alphas_cumprod[t])
        expected = optimal_x_0(x[row : row + 1], batches, a, class_id=1, **inside).float()
        x_0 = scheduler.step(found[row : row + 1], t, x[row : row + 1]).pred_original_sample
        torch.testing.assert_close(x_0, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(denoiser(x, 951).sample[:1], found[:1])


def drawn(tiny, pipeline_class, denoiser, **call):
    scheduler = tiny.make_scheduler(timestep_spacing="trailing", set_alpha_to_one=True)
    pipeline = pipeline_class(**tiny.make_components() | {"scheduler": scheduler})
    pipeline.unet = denoiser
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 20, "num_images_per_prompt": 6, "output_type": "latent", **call}
    return pipeline, pipeline("a mug", generator=torch.Generator().manual_seed(1), **call).images


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_ddim_draws_the_pictures_again(tiny, latents, batches, guidance):
    denoiser = OptimalDenoiser(batches, tiny.make_scheduler())
    _, images = drawn(tiny, StableDiffusionPipeline, denoiser, guidance_scale=guidance)
    gaps = (images[:, None] - latents).flatten(2).abs().amax(dim=2)
    assert gaps.amin(dim=1).max() < 1e-3
    assert len(set(gaps.argmin(dim=1).tolist())) > 1


def test_of_a_class_it_draws_that_class(tiny, latents, class_ids, batches):
    start = start_of(latents, class_ids, components=1, offset_from=901)
    denoiser = OptimalDenoiser(batches, tiny.make_scheduler(), start=start)
    pipeline, images = drawn(tiny, OffsetStableDiffusionPipeline, denoiser.of_class(1))
    pipeline.register_modules(start_distribution=start)
    seed = {"generator": torch.Generator().manual_seed(1), "num_inference_steps": 20}
    started = pipeline(
        "a mug", class_name="hat", num_images_per_prompt=6, output_type="latent", **seed
    ).images
    for found in (images, started):
        gaps = (found[:, None] - latents).flatten(2).abs().amax(dim=2)
        assert gaps.amin(dim=1).max() < 1e-3
        assert set(class_ids[gaps.argmin(dim=1)].tolist()) == {1}


def test_its_map_can_be_inverted_the_better_the_more_steps(tiny, batches, generator):
    """What the last alpha, below one, leaves of the noise leads back to all of it."""
    pipeline = StableDiffusionPipeline(**tiny.make_components())
    pipeline.unet = OptimalDenoiser(batches, pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    x_T = torch.randn(1, *SHAPE, generator=generator)
    missed = []
    for steps in (10, 50, 100):
        call = {"num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "latent"}
        x_0 = pipeline("", latents=x_T, **call).images
        eps = invert(pipeline, x_0, sampler=Sampler("DDIMScheduler", steps), refinements=3).eps
        missed.append(float((eps - x_T).norm() / x_T.norm()))
    assert missed[0] > 2 * missed[1] > 4 * missed[2]
    assert missed[2] < 0.15


WRONG = {
    "no noise": (
        lambda x, batches, scheduler: optimal_eps(x, batches, 1.0),
        r"alpha_bar must be in \[0, 1\), got 1.0",
    ),
    "no pictures": (
        lambda x, batches, scheduler: optimal_eps(x, [], 0.5),
        "latents_batches must hold at least one picture, got none",
    ),
    "no such class": (
        lambda x, batches, scheduler: optimal_eps(x, batches, 0.5, class_id=7),
        "latents_batches must hold at least one picture of class 7, got none",
    ),
    "another size": (
        lambda x, batches, scheduler: optimal_eps(x[..., :4], batches, 0.5),
        r"latents must be shaped \(4, 8, 4\) each as the noisy ones, got \(4, 8, 8\)",
    ),
    "read once": (
        lambda x, batches, scheduler: OptimalDenoiser(iter(batches), scheduler),
        "latents_batches must be readable again at every step, got a list_iterator",
    ),
    "no batches": (
        lambda x, batches, scheduler: OptimalDenoiser([], scheduler),
        "latents_batches must hold at least one batch, got none",
    ),
    "between timesteps": (
        lambda x, batches, scheduler: OptimalDenoiser(batches, scheduler)(x, 958.5),
        "timestep must be whole for the exact denoiser, got 958.5",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(tiny, latents, batches, case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call(latents[:1], batches, tiny.make_scheduler())


def test_an_unknown_prediction_is_refused(tiny, batches):
    scheduler = tiny.make_scheduler(prediction_type="flow")
    with pytest.raises(
        ValueError, match="prediction_type must be one of epsilon, v_prediction, sample, got 'flow'"
    ):
        OptimalDenoiser(batches, scheduler)
