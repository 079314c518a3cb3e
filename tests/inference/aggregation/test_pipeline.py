"""Pipelines that draw together: against one model alone, against a loop by hand, and what is left behind."""

import copy
import gc
import math
import threading
import weakref

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from onbrand.inference import (
    AggregatedPipeline,
    OffsetStableDiffusionControlNetPipeline,
    OffsetStableDiffusionPipeline,
)
from onbrand.inference.aggregation import pipeline as aggregate
from onbrand.pca import StartDistribution
from PIL import Image

STEPS = 4
CONDITION = Image.linear_gradient("L").resize((32, 32)).convert("RGB")

pytestmark = pytest.mark.filterwarnings("ignore:the sampler's first timestep")


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def controlled(make, tiny):
    pipeline = make()
    controlnet = tiny.make_controlnet(pipeline.unet, effect=1.0)
    return quiet(StableDiffusionControlNetPipeline(**pipeline.components, controlnet=controlnet))


def draw(pipeline, prompt="a mug", *, seed=0, **call):
    how = {"num_inference_steps": STEPS, "output_type": "latent", "generator": seeded(seed)}
    return pipeline(prompt, **how | call).images


def count_calls(monkeypatch, pipeline):
    """What the UNet is shown, each time it is called."""
    seen, forward = [], pipeline.unet.forward

    def counted(sample, *args, **kwargs):
        seen.append(sample.clone())
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(pipeline.unet, "forward", counted)
    return seen


def by_hand(pipelines, prompts, weight, sizes, *, steps, guidance):
    """Algorithm 1 of the paper, for two models and DDIM."""
    eps = torch.randn(1, 4, 8, 8, generator=seeded())
    x, texts = [eps, eps], []
    schedulers = [copy.deepcopy(p.scheduler) for p in pipelines]
    for p, scheduler, prompt in zip(pipelines, schedulers, prompts, strict=True):
        scheduler.set_timesteps(STEPS)
        positive, negative = p.encode_prompt(prompt, "cpu", 1, True)
        texts.append(torch.cat([negative, positive]))
    for k, t in enumerate(schedulers[0].timesteps):
        for i in range(2 if k < steps else 1):
            without, with_text = pipelines[i].unet(torch.cat([x[i]] * 2), t, texts[i]).sample.chunk(2)
            out = without + guidance[i] * (with_text - without)
            x[i] = schedulers[i].step(out, t, x[i]).prev_sample
        if k < steps:
            mean, both = list(x), weight * x[0] + (1 - weight**2) ** 0.5 * x[1]
            for i in range(2):
                away = both - mean[i]
                share = min(sizes[i] * math.sqrt(256), float(away.norm())) / max(float(away.norm()), 1e-12)
                x[i] = both - share * away
    return x[0]


@pytest.mark.parametrize("predictions", [("epsilon", "epsilon"), ("epsilon", "v_prediction")])
@torch.no_grad()
def test_two_models_against_the_algorithm_by_hand(make, tiny, predictions):
    pipelines = [
        make(seed=i, scheduler=tiny.make_scheduler(prediction_type=kind))
        for i, kind in enumerate(predictions)
    ]
    aggregated = AggregatedPipeline(pipelines, 0.6, 2, (0.1, 0.2))
    calls = [{"prompt": "a mug", "guidance_scale": 2.0}, {"prompt": "a shoe", "guidance_scale": 5.0}]
    ours = draw(aggregated, None, calls=calls)
    expected = by_hand(pipelines, ["a mug", "a shoe"], 0.6, (0.1, 0.2), steps=2, guidance=(2.0, 5.0))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    alone = draw(pipelines[0], guidance_scale=2.0)
    assert (ours - alone).std() > 0.01


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_the_networks_are_called_as_often_as_the_paper_says(make, monkeypatch, steps):
    pipelines = [make(seed=i) for i in range(3)]
    seen = [count_calls(monkeypatch, pipeline) for pipeline in pipelines]
    draw(AggregatedPipeline(pipelines, steps=steps))
    assert [len(calls) for calls in seen] == [STEPS, steps, steps]
    for calls in seen[1:]:
        assert torch.equal(calls[0], seen[0][0])  # one noise for all


def test_weight_1_is_the_first_model_bit_for_bit(make, controlled, tiny):
    xl = [quiet(StableDiffusionXLPipeline(**tiny.make_xl_components())) for _ in range(2)]
    xl[1].unet = tiny.make_unet(seed=3, **{key: xl[0].unet.config[key] for key in XL_CONFIG})
    image = {"image": CONDITION}
    cases = [
        ([make(), make(seed=1)], {}, {}),
        ([make(OffsetStableDiffusionPipeline), make(seed=1)], {}, {}),
        ([make(), controlled], {}, image),
        ([controlled, make(seed=1)], image, {}),
        (xl, {}, {"prompt": "a shoe"}),
    ]
    for pipelines, first, second in cases:
        alone = draw(pipelines[0], output_type="np", num_images_per_prompt=2, **first)
        for kind in ("nested", "slerp", "rescaled"):
            aggregated = AggregatedPipeline(pipelines, 1, kind=kind)
            how = {"calls": [first, second], "output_type": "np", "num_images_per_prompt": 2}
            assert np.array_equal(draw(aggregated, **how), alone)
        mixed = draw(AggregatedPipeline(pipelines), calls=[first, second], output_type="np")
        assert not np.allclose(mixed, alone[:1], atol=1e-3)


XL_CONFIG = (
    "use_linear_projection", "cross_attention_dim", "addition_embed_type", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)  # fmt: skip


def test_weight_0_all_the_way_is_the_second_model(make):
    pipelines = [make(), make(seed=1)]
    ours = draw(AggregatedPipeline(pipelines, 0, STEPS, (0, 0.43)))
    assert torch.equal(ours, draw(pipelines[1]))
    kept = draw(AggregatedPipeline(pipelines, 0, STEPS, (0.1, 0.43)))
    assert not torch.allclose(kept, draw(pipelines[1]), atol=1e-2)


def test_identical_models_get_their_picture_back_if_the_correction_covers_the_excess(make, monkeypatch):
    pipeline = make()
    alone = draw(pipeline)
    assert torch.equal(draw(AggregatedPipeline([pipeline, make()], 0.5, 3, [math.inf] * 2)), alone)
    for kind in ("slerp", "rescaled"):
        again = draw(AggregatedPipeline([pipeline, make()], 0.5, 3, (0, 0), kind=kind))
        torch.testing.assert_close(again, alone, atol=1e-4, rtol=1e-4)
    # without it the first step comes out longer by 1.366, what .366 of the latents' length would take away
    seen = count_calls(monkeypatch, pipeline)
    draw(pipeline)
    second = seen.pop(1)[:1]
    seen.clear()
    draw(AggregatedPipeline([pipeline, make()], 0.5, 3, (0, 0)))
    torch.testing.assert_close(seen[1][:1], (0.5 + math.sqrt(0.75)) * second)
    seen.clear()
    draw(AggregatedPipeline([pipeline, make()], 0.5, 3, (0.367 * float(second.norm()) / 16, 0)))
    torch.testing.assert_close(seen[1][:1], second)


def test_a_picture_does_not_depend_on_its_batch(make):
    # in float64, as another batch may round otherwise
    aggregated = AggregatedPipeline([copy.deepcopy(make(seed=seed)).to(torch.float64) for seed in range(3)])
    batch = draw(aggregated, ["a mug", "a shoe"] * 2, generator=[seeded(i) for i in range(4)])
    alone = draw(aggregated, "a shoe", generator=[seeded(3)])
    assert alone.dtype == torch.float64
    torch.testing.assert_close(batch[3:], alone)


def test_one_pipeline_may_stand_twice(make):
    pipeline = make()
    calls = [{"guidance_scale": 1.0}, {"prompt": "a shoe", "guidance_scale": 6.0}]
    expected = draw(AggregatedPipeline([make(), make()]), calls=calls)
    assert torch.equal(draw(AggregatedPipeline([pipeline, pipeline]), calls=calls), expected)


def test_each_model_starts_from_its_own_distribution(make, tiny, monkeypatch):
    x = torch.randn(8, *tiny.LATENT_SHAPE, generator=seeded())
    starts = [
        StartDistribution.fit(x + i, torch.zeros(8).long(), class_names=["mug"], components=0) for i in (1, 3)
    ]
    pipelines = [
        make(OffsetStableDiffusionPipeline, seed=i, start_distribution=start)
        for i, start in enumerate(starts)
    ]
    pipelines.append(make(seed=2))
    seen = [count_calls(monkeypatch, pipeline) for pipeline in pipelines]
    calls = [{"class_name": "mug"}, {}, {}]
    draw(AggregatedPipeline(pipelines), calls=calls, guidance_scale=1.0)
    eps, scheduler = torch.randn(1, *tiny.LATENT_SHAPE, generator=seeded()), pipelines[0].scheduler
    scheduler.set_timesteps(STEPS)
    a = scheduler.alphas_cumprod[scheduler.timesteps[0]]
    for calls, mean in zip(seen, (starts[0].mean, starts[1].mean, torch.zeros(1)), strict=True):
        torch.testing.assert_close(calls[0], a.sqrt() * mean + (1 - a).sqrt() * eps if mean.any() else eps)
    drawn = draw(AggregatedPipeline(pipelines, (1, 1)), calls=[{"start": "draw"}, {}, {}])
    assert torch.equal(drawn, draw(pipelines[0], start="draw"))


def test_a_condition_of_one_model_changes_the_picture(make, controlled):
    aggregated = AggregatedPipeline([make(), controlled])
    pictures = [draw(aggregated, calls=[{}, {"image": image}]) for image in (CONDITION, CONDITION.rotate(90))]
    assert (pictures[0] - pictures[1]).std() > 1e-3


def add_ip_adapter(pipeline, tiny):
    """Random weights of an IP-Adapter with image embeddings of 6 values and 4 tokens a picture."""
    width, random = tiny.TEXT_WIDTH, seeded()
    shapes = {
        "proj.weight": (4 * width, 6),
        "proj.bias": (4 * width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    image_proj = {key: torch.randn(shape, generator=random) for key, shape in shapes.items()}
    layers = range(1, len(pipeline.unet.attn_processors), 2)
    keys = [f"{layer}.to_{letter}_ip.weight" for layer in layers for letter in "kv"]
    attention = {key: torch.randn(16, width, generator=random) for key in keys}
    weights = {"image_proj": image_proj, "ip_adapter": attention}
    pipeline.unet._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
    return pipeline


def test_a_model_with_an_ip_adapter_takes_its_picture(make, tiny):
    aggregated = AggregatedPipeline([make(), add_ip_adapter(make(seed=1), tiny)])
    pictures = [
        draw(aggregated, calls=[{}, {"ip_adapter_image_embeds": [torch.randn(2, 1, 6, generator=seeded(i))]}])
        for i in (0, 0, 1)
    ]
    assert torch.equal(pictures[0], pictures[1])
    assert (pictures[0] - pictures[2]).std() > 1e-3


def test_half_precision_stays(make, tiny):
    pipelines = [
        make(seed=i, vae=tiny.make_vae(), text_encoder=tiny.make_text_encoder()).to(torch.bfloat16)
        for i in range(2)
    ]
    ours = draw(AggregatedPipeline(pipelines, 1))
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, draw(pipelines[0]))
    mixed = draw(AggregatedPipeline([make(), pipelines[1]]))
    assert mixed.dtype == torch.float32


def test_the_size_is_the_first_models(make, controlled):
    wide = CONDITION.resize((48, 32))
    aggregated = AggregatedPipeline([controlled, make()], 1)
    ours = draw(aggregated, calls=[{"image": wide}, {}])
    assert torch.equal(ours, draw(controlled, image=wide))
    assert ours.shape[-2:] == (8, 12)
    tensor = torch.zeros(1, 3, 32, 48)
    assert draw(aggregated, calls=[{"image": [tensor]}, {}]).shape[-2:] == (8, 12)
    assert draw(AggregatedPipeline([make(), make()]), height=40).shape[-2:] == (10, 8)


class Shifted:
    """Noise of a gallery that is looked at and moved."""

    def __init__(self):
        self.galleries = 0

    def draw(self, num_images, shape, generator):
        return torch.randn(num_images, *shape, generator=generator)

    def refine(self, eps, predict):
        self.galleries += 1
        x_0, _ = predict(eps)
        return eps + 0.1 * x_0 / x_0.std()


def test_an_initializer_is_asked_once_for_all_models(make, monkeypatch):
    pipelines = [
        make(OffsetStableDiffusionPipeline),
        make(OffsetStableDiffusionPipeline, seed=1),
        make(seed=2),
    ]
    prompts, call = ["a mug", "a shoe"], {"num_images_per_prompt": 2}
    alone = draw(pipelines[0], prompts, noise=Shifted(), **call)
    noise = Shifted()
    assert torch.equal(draw(AggregatedPipeline(pipelines, (1, 1)), prompts, noise=noise, **call), alone)
    assert noise.galleries == 2
    seen = [count_calls(monkeypatch, pipeline) for pipeline in pipelines]
    draw(AggregatedPipeline(pipelines), prompts, noise=Shifted(), **call)
    assert len(seen[0]) == STEPS + 2
    assert torch.equal(seen[1][0], seen[0][2])
    assert torch.equal(seen[2][0], seen[0][2])


@pytest.mark.parametrize(("kind", "call"), [(DDPMScheduler, {}), (DDIMScheduler, {"eta": 1.0})])
def test_models_that_draw_in_their_steps_draw_apart(make, tiny, monkeypatch, kind, call):
    pipelines = [make(scheduler=kind.from_config(tiny.make_scheduler().config)) for _ in range(2)]
    call |= {"num_images_per_prompt": 8}
    alone = draw(pipelines[0], **call)
    # without a correction towards the mean the first model keeps its noise
    assert torch.equal(draw(AggregatedPipeline(pipelines, 1, 3, (0, 0)), **call), alone)
    stepped = []
    plain = aggregate.correct

    def correct(x_prime, means, sizes):
        stepped.append((x_prime, means))
        return plain(x_prime, means, sizes)

    monkeypatch.setattr(aggregate, "correct", correct)
    draw(AggregatedPipeline(pipelines, 0.6, 1, (0, 0)), **call)
    x_prime, means = stepped[0]
    assert torch.equal(means[0], means[1])
    noise = x_prime - 1.4 * means[0]
    stepped.clear()
    draw(AggregatedPipeline(pipelines, 1, 1, (0, 0)), **call)
    own = stepped[0][0] - stepped[0][1][0]
    # as much noise as one model adds: of 2048 values the ratio is good to .02; drawn alike it would be 1.4
    assert float(noise.std() / own.std()) == pytest.approx(1, abs=0.07)
    draws = [draw(AggregatedPipeline(pipelines), seed=seed, **call) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.allclose(draws[0], draws[2], atol=0.1)


def test_the_generator_is_used_as_by_the_first_model_alone(make):
    pipelines = [make(), make(seed=1)]
    generators = [seeded(), seeded()]
    draw(pipelines[0], generator=generators[0])
    draw(AggregatedPipeline(pipelines), generator=generators[1])
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    drawn = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn.append(draw(AggregatedPipeline(pipelines), generator=None))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2], atol=0.1)


class Broken(Exception):
    pass


@pytest.mark.parametrize(("model", "at"), [(0, 1), (1, 1), (1, 2), (2, 3)])
def test_an_exception_ends_all_and_leaves_nothing(make, monkeypatch, model, at):
    pipelines = [make(seed=i) for i in range(3)]
    aggregated = AggregatedPipeline(pipelines)
    expected, schedulers = draw(aggregated), [p.scheduler for p in pipelines]
    states = [dict(vars(p)) for p in pipelines]
    threads, error, unet = threading.active_count(), Broken("as it was"), pipelines[model].unet
    forward, calls = unet.forward, []

    def breaks(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise error
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(unet, "forward", breaks)
        with pytest.raises(Broken, match="as it was") as caught:
            draw(aggregated)
    assert caught.value is error
    assert threading.active_count() == threads
    assert [p.scheduler for p in pipelines] == schedulers
    assert all("step" not in vars(s) and type(s) is DDIMScheduler for s in schedulers)
    assert [dict(vars(p)) for p in pipelines] == states
    assert torch.equal(draw(aggregated), expected)


def test_a_call_keeps_no_model_alive(make):
    pipelines = [make(), make(seed=1)]
    gone = [weakref.ref(p.unet) for p in pipelines]
    gc.disable()
    try:
        aggregated = AggregatedPipeline(pipelines)
        draw(aggregated)
        assert all(ref() is not None for ref in gone)
        del aggregated, pipelines
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


def test_memory_that_runs_out_names_the_remedy(make, monkeypatch):
    pipelines = [make(), make(seed=1)]

    def forward(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(pipelines[1].unet, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError, match=r"out of memory\n.*offload=True keeps only the model"):
        draw(AggregatedPipeline(pipelines))
    with pytest.raises(torch.OutOfMemoryError, match=r"out of memory$"):
        draw(AggregatedPipeline(pipelines, offload=True))


def test_callbacks_are_the_first_models_and_may_interrupt(make):
    pipelines, places = [make(), make(seed=1)], []

    def look(pipeline, index, timestep, tensors):
        places.append((index, tensors["latents"].clone()))
        pipeline._interrupt = index == 1
        return {}

    alone = draw(AggregatedPipeline(pipelines), callback_on_step_end=look)
    assert [index for index, _ in places] == [0, 1]
    assert torch.equal(alone, places[1][1])
    with pytest.raises(ValueError, match="call of model 2 must last for all aggregated steps, got its end"):
        draw(AggregatedPipeline(pipelines), calls=[{}, {"callback_on_step_end": look}])


class OwnLoop(StableDiffusionPipeline):
    """A pipeline that reads its steps by name, as some outside of diffusers do."""

    @torch.no_grad()
    def __call__(self, prompt, height, width, num_inference_steps, generator, output_type="pil"):
        text, _ = self.encode_prompt(prompt, "cpu", 1, False)
        x = torch.randn(1, 4, height // 4, width // 4, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, t, text).sample, t, x).prev_sample
        return type("Output", (), {"images": x})


def test_a_pipeline_with_a_loop_of_its_own(make):
    others = [make(seed=1), make(OwnLoop, seed=1)]
    first = make()
    calls = [{"guidance_scale": 1.0}, {"guidance_scale": 1.0}]
    expected = draw(AggregatedPipeline([first, others[0]]), calls=calls)
    torch.testing.assert_close(draw(AggregatedPipeline([first, others[1]]), calls=[calls[0], {}]), expected)


def test_a_controlnet_of_ours_with_a_start_and_without(make, controlled, tiny):
    x = torch.randn(8, *tiny.LATENT_SHAPE, generator=seeded())
    start = StartDistribution.fit(x + 2, torch.zeros(8).long(), class_names=["mug"], components=0)
    parts = {**controlled.components, "start_distribution": start}
    ours = quiet(OffsetStableDiffusionControlNetPipeline(**parts))
    calls = [{"image": CONDITION}, {}]
    expected = draw(ours, image=CONDITION)
    assert torch.equal(draw(AggregatedPipeline([ours, make()], 1), calls=calls), expected)
