"""Noise that is chosen by looking at the model: what the pipeline shows to an initializer's `refine`."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from onbrand.inference import OffsetStableDiffusionPipeline, OffsetStableDiffusionXLPipeline
from onbrand.inference.prediction import gain_at
from onbrand.inference.start import at_first_step
from onbrand.inference.trace import record_steps
from onbrand.pca import StartDistribution
from PIL import Image

STEPS = 20
pytestmark = pytest.mark.filterwarnings("ignore:the sampler's first timestep")


class Looking:
    """Keeps what it is shown, and answers with the noise it was given, moved by `shift`."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift, self.seen = shift, []

    def draw(self, num_images, shape, generator):
        return torch.randn(num_images, *shape, generator=generator)

    def refine(self, eps, predict):
        x_0, maps = predict(eps)
        again, _ = predict(eps)
        assert maps is None
        assert torch.equal(x_0, again)
        self.seen.append((eps, x_0, predict.gain))
        return eps + self.shift


@pytest.fixture(scope="module")
def distribution(tiny):
    x = torch.randn(20, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    prefixes = {"mug": "a mug", "shoe": "a shoe"}
    ids = torch.arange(20) % 2
    return StartDistribution.fit(x, ids, class_names=["mug", "shoe"], caption_prefixes=prefixes)


@pytest.fixture(params=["sd", "xl", "v", "euler"])
def pipe(request, tiny, distribution):
    if request.param == "xl":
        pipe = OffsetStableDiffusionXLPipeline(**tiny.make_xl_components(), start_distribution=distribution)
    else:
        parts = tiny.make_v_components() if request.param == "v" else tiny.make_components()
        pipe = OffsetStableDiffusionPipeline(**parts, start_distribution=distribution)
    if request.param == "euler":
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded():
    return torch.Generator().manual_seed(0)


def call_of(**more):
    base = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "num_images_per_prompt": 2}
    return base | {"negative_prompt": ["dark", "small"], "output_type": "latent"} | more


def test_each_prompt_is_shown_its_own_first_prediction(pipe):
    """It is what the call itself then predicts at its first step: prompt, guidance and start included."""
    looking, prompts = Looking(), ["a mug, red", "a shoe"]
    own = pipe.scheduler
    drawn = pipe(prompts, noise=looking, generator=seeded(), **call_of()).images
    assert pipe.scheduler is own
    assert len(looking.seen) == 2
    for i, (prompt, negative) in enumerate(zip(prompts, ("dark", "small"), strict=True)):
        for j in range(2):
            eps, x_0, _ = looking.seen[i]
            pipe.scheduler = type(own).from_config(own.config)
            recorded = record_steps(pipe.scheduler)

            class Given:
                def draw(self, num_images, shape, generator, eps=eps, j=j):
                    return eps[[j, 1 - j]]

            pipe(prompt, noise=Given(), generator=seeded(), **call_of(negative_prompt=negative))
            torch.testing.assert_close(recorded[0].x_0, x_0[j], rtol=1e-4, atol=1e-4)
            pipe.scheduler = own
    again = pipe(prompts, generator=seeded(), noise=Looking(), **call_of()).images
    assert torch.equal(drawn, again)


def test_what_is_refined_is_what_is_drawn_from(pipe):
    class Plain(Looking):
        refine = None

    class Shifted(Looking):
        def draw(self, num_images, shape, generator):
            return super().draw(num_images, shape, generator) + 0.5

    del Plain.refine
    moved = pipe("a mug", noise=Looking(0.5), generator=seeded(), **call_of(negative_prompt=None)).images

    class Drawn:
        def draw(self, num_images, shape, generator):
            return torch.randn(num_images, *shape, generator=generator) + 0.5

    expected = pipe("a mug", noise=Drawn(), generator=seeded(), **call_of(negative_prompt=None)).images
    assert torch.equal(moved, expected)


def test_pure_noise_and_callbacks(pipe):
    calls = []

    def on_step_end(pipe, step, timestep, values):
        calls.append(step)
        return values

    looking = Looking()
    options = call_of(negative_prompt=None, callback_on_step_end=on_step_end)
    pipe("a mug", noise=looking, start="none", generator=seeded(), **options)
    assert calls == list(range(STEPS))
    from_start = Looking()
    pipe("a mug", noise=from_start, generator=seeded(), **call_of(negative_prompt=None))
    assert not torch.allclose(looking.seen[0][1], from_start.seen[0][1])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_gain_is_the_formulas_derivative(tiny, kind):
    """By DDIM's own prediction, for a network that answers 0 whatever it sees."""
    scheduler = DDIMScheduler.from_config(tiny.make_scheduler(prediction_type=kind).config)
    scheduler, t_0 = at_first_step(scheduler, STEPS)
    a = float(scheduler.alphas_cumprod[int(t_0)])
    eps, h = torch.zeros(1, 4, 8, 8), 1e-2
    answer = torch.zeros_like(eps)
    x_0 = [
        scheduler.step(answer, t_0, math.sqrt(1 - a) * value).pred_original_sample for value in (eps, eps + h)
    ]
    torch.testing.assert_close((x_0[1] - x_0[0]) / h, torch.full_like(eps, gain_at(scheduler, t_0)))


def test_a_schedule_that_ends_at_pure_noise_has_no_gain(tiny):
    config = tiny.make_scheduler(prediction_type="v_prediction").config
    scheduler = DDIMScheduler.from_config(config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    scheduler, t_0 = at_first_step(scheduler, STEPS)
    assert scheduler.alphas_cumprod[int(t_0)] == 0
    assert gain_at(scheduler, t_0) == 0


def test_a_prediction_type_without_a_formula_is_refused(tiny):
    scheduler, t_0 = at_first_step(DDIMScheduler(prediction_type="score"), STEPS)
    with pytest.raises(ValueError, match="prediction_type must be epsilon, v_prediction or sample, got 'sc"):
        gain_at(scheduler, t_0)


def test_a_controlnet_is_shown_its_condition(tiny, distribution):
    from onbrand.inference import OffsetStableDiffusionControlNetPipeline

    parts = tiny.make_components()
    parts["controlnet"] = tiny.make_controlnet(parts["unet"], effect=1.0)
    pipe = OffsetStableDiffusionControlNetPipeline(**parts, start_distribution=distribution)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    for colour in ("red", "white"):
        looking = Looking()
        image = [Image.new("RGB", (32, 32), colour)]
        pipe(["a mug"], image=image, noise=looking, generator=seeded(), **call_of(negative_prompt=None))
        seen.append(looking.seen[0][1].numpy())
    assert not np.allclose(*seen)
