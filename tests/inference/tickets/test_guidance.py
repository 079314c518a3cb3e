"""Soft and Paint: what is added to which logits, when, and that nothing of it is left behind."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from onbrand.inference import (
    AggregatedPipeline,
    OffsetStableDiffusionControlNetPipeline,
    OffsetStableDiffusionPipeline,
    OffsetStableDiffusionXLPipeline,
    Paint,
    Soft,
)
from onbrand.inference.tickets.attention_maps import cross_attentions
from onbrand.inference.tickets.guidance import bump, filled, largest_logit, noise_deviation
from onbrand.inference.tickets.layouts import Layout
from peft import LoraConfig
from PIL import Image

PROMPT = "a mug a hat"
BOX, OTHER = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 0.5)
LAYOUT = Layout((("mug", BOX), ("hat", OTHER)))
MUG, HAT = [2, 3, 4], [6, 7, 8]
STEPS = 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_pipe(tiny, kind="sd"):
    classes = {"sd": OffsetStableDiffusionPipeline, "xl": OffsetStableDiffusionXLPipeline}
    parts = tiny.make_xl_components() if kind == "xl" else tiny.make_components()
    if kind == "controlnet":
        parts["controlnet"] = tiny.make_controlnet(parts["unet"], effect=0.1)
        classes["controlnet"] = OffsetStableDiffusionControlNetPipeline
    pipe = classes[kind](**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(tiny):
    return make_pipe(tiny)


def call(pipe, *, prompt=PROMPT, images=2, guidance=3.0, steps=STEPS, seed=0, **more):
    return pipe(
        prompt, num_inference_steps=steps, guidance_scale=guidance, num_images_per_prompt=images,
        generator=seeded(seed), output_type="latent", **more,
    ).images  # fmt: skip


def hooks(unet):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in unet.modules())


class Watching:
    """Notes how every cross-attention layer of a UNet is called."""

    def __init__(self, unet):
        self.calls, self.removing = [], []
        for name, factor in cross_attentions(unet).items():
            note = self.noting(name, factor)
            layer = unet.get_submodule(name)
            self.removing.append(layer.register_forward_pre_hook(note, with_kwargs=True).remove)

    def noting(self, name, factor):
        def note(attn, args, kwargs):
            self.calls.append((name, factor, attn, args, kwargs))

        return note

    def __enter__(self):
        return self.calls

    def __exit__(self, *error):
        for remove in self.removing:
            remove()


def added_of(kwargs):
    return kwargs["attention_mask"]


@pytest.mark.parametrize("kind", ["sd", "xl", "controlnet"])
@pytest.mark.parametrize(
    ("guide", "strength"),
    [
        (Soft(LAYOUT, weight=2.0), lambda step, a: 2.0 * (STEPS - step) / STEPS),
        (Paint(LAYOUT, weight=0.7), lambda step, a: 0.7 * math.log(1 + math.sqrt((1 - a) / a))),
    ],
    ids=["soft", "paint"],
)
def test_what_is_added_to_every_layer_at_every_step(tiny, kind, guide, strength):
    pipe = make_pipe(tiny, kind)
    more = {"image": Image.new("RGB", (32, 32), "white")} if kind == "controlnet" else {}
    with guide.on(pipe, PROMPT), Watching(pipe.unet) as calls:
        call(pipe, **more)
    layers = len(cross_attentions(pipe.unet))
    assert layers == 4
    assert len(calls) == STEPS * layers
    for i, (_, factor, attn, args, kwargs) in enumerate(calls):
        step = i // layers
        a = float(pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps[step]])
        with torch.no_grad():
            query = attn.head_to_batch_dim(attn.to_q(args[0] if args else kwargs["hidden_states"]))
            key = attn.head_to_batch_dim(attn.to_k(kwargs["encoder_hidden_states"]))
            logits = (query @ key.transpose(1, 2) * attn.scale).unflatten(0, (4, attn.heads))
        added = added_of(kwargs)
        side = 8 // factor
        assert added.shape == (4, side * side, 16)
        assert not added[:2].any()
        for row in (2, 3):
            shape = torch.zeros(side * side, 16)
            make = bump if isinstance(guide, Soft) else filled
            for words, box in ((MUG, BOX), (HAT, OTHER)):
                shape[:, words] = make(box, side, side).flatten()[:, None]
            expected = strength(step, a) * logits[row].max() * shape
            torch.testing.assert_close(added[row], expected, atol=1e-5, rtol=1e-5)


def test_without_guidance_every_row_is_the_prompts(pipe):
    with Paint(LAYOUT, weight=1.0).on(pipe, PROMPT), Watching(pipe.unet) as calls:
        call(pipe, guidance=1.0)
    assert all(added_of(kwargs).shape[0] == 2 and added_of(kwargs)[0].any() for *_, kwargs in calls)


def test_a_picture_is_guided_as_if_it_were_alone(pipe):
    noise = torch.randn(3, 4, 8, 8, generator=seeded()) * torch.tensor([1.0, 4.0, 0.3]).view(3, 1, 1, 1)
    with Soft(LAYOUT, weight=2.0).on(pipe, PROMPT):
        together = call(pipe, images=3, latents=noise)
        alone = [call(pipe, images=1, latents=noise[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_more_weight_moves_the_picture_and_none_leaves_its_bits(pipe):
    plain = call(pipe)
    moved = []
    for weight in (0.0, 0.5, 5.0):
        for kind in (Soft, Paint):
            with kind(LAYOUT, weight=weight).on(pipe, PROMPT):
                guided = call(pipe)
            moved.append(float((guided - plain).abs().max()))
    assert moved[:2] == [0, 0]
    assert all(difference > 1e-4 for difference in moved[2:])


def test_words_draw_more_attention_in_their_boxes(pipe):
    def share(calls):
        """Of the attention of the prompt's rows, how much the mug's words get in its box."""
        found = []
        for _, factor, attn, args, kwargs in calls:
            with torch.no_grad():
                query = attn.head_to_batch_dim(attn.to_q(args[0] if args else kwargs["hidden_states"]))
                key = attn.head_to_batch_dim(attn.to_k(kwargs["encoder_hidden_states"]))
                mask = kwargs.get("attention_mask")
                mask = None if mask is None else mask.repeat_interleave(attn.heads, 0)
                maps = attn.get_attention_scores(query, key, mask).unflatten(0, (2, attn.heads)).mean(1)
            inside = filled(BOX, 8 // factor, 8 // factor).flatten() > 0.5
            found.append(float(maps[1][inside][:, MUG].sum(-1).mean()))
        return sum(found) / len(found)

    shares = []
    for weight in (0.0, 1.0, 3.0):
        with Soft(LAYOUT, weight=weight).on(pipe, PROMPT), Watching(pipe.unet) as calls:
            call(pipe, images=1, steps=1)
        shares.append(share(calls))
    assert shares[0] < shares[1] < shares[2]


def test_an_error_leaves_the_unet_as_it_was(pipe):
    processors, count, plain = dict(pipe.unet.attn_processors), hooks(pipe.unet), call(pipe)
    with pytest.raises(ZeroDivisionError), Soft(LAYOUT).on(pipe, PROMPT):
        1 / (hooks(pipe.unet) - count - 1 - len(cross_attentions(pipe.unet)))
    Paint(LAYOUT).on(pipe, PROMPT)  # not entered
    assert hooks(pipe.unet) == count
    assert all(processors[name] is now for name, now in pipe.unet.attn_processors.items())
    assert torch.equal(call(pipe), plain)


def test_they_add_up(pipe):
    soft, paint = Soft(LAYOUT, weight=1.0), Paint(Layout((("hat", OTHER),)), weight=0.5)

    def first(*guides):
        for guide in guides:
            guide.__enter__()
        with Watching(pipe.unet) as calls:
            call(pipe, steps=1)
        for guide in reversed(guides):
            guide.__exit__(None, None, None)
        return added_of(calls[0][-1])

    both = first(soft.on(pipe, PROMPT), paint.on(pipe, PROMPT))
    torch.testing.assert_close(both, first(soft.on(pipe, PROMPT)) + first(paint.on(pipe, PROMPT)))


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
def test_any_processor_of_the_pipeline_takes_part(pipe, processor):
    with Soft(LAYOUT, weight=2.0).on(pipe, PROMPT):
        expected = call(pipe)
        pipe.unet.set_attn_processor(processor())
        torch.testing.assert_close(call(pipe), expected, atol=1e-4, rtol=1e-4)


def test_lora_stays_in_place_and_counts(pipe):
    torch.manual_seed(0)
    targets = ["to_q", "to_k", "to_v"]
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    with_lora = call(pipe)
    with Soft(LAYOUT, weight=2.0).on(pipe, PROMPT):
        guided = call(pipe)
        pipe.unet.disable_adapters()
        without = call(pipe)
    assert not torch.equal(guided, without)
    pipe.unet.enable_adapters()
    assert torch.equal(call(pipe), with_lora)


def test_a_mask_that_the_call_brings_is_kept(pipe):
    latents, text = torch.randn(1, 4, 8, 8, generator=seeded()), torch.randn(1, 16, 16, generator=seeded())
    kept = torch.ones(1, 16)
    kept[:, 9:] = 0
    pipe.scheduler.set_timesteps(STEPS)
    pipe._guidance_scale = 1.0
    with Soft(LAYOUT, weight=1.0).on(pipe, PROMPT), Watching(pipe.unet) as calls, torch.no_grad():
        pipe.unet(latents, pipe.scheduler.timesteps[0], text, encoder_attention_mask=kept)
    added = added_of(calls[0][-1])
    assert (added[..., 9:] == -10000).all()
    assert (added[..., MUG] > 0).any()


@pytest.mark.parametrize("unit", ["fraction", "latent", "pixel"])
def test_units_and_several_boxes_of_a_concept(pipe, unit):
    scale = {"fraction": 1, "latent": 8, "pixel": 32}[unit]
    boxes = tuple(("mug", tuple(scale * edge for edge in box)) for box in (BOX, OTHER))
    with Paint(Layout(boxes, unit=unit), weight=1.0).on(pipe, PROMPT), Watching(pipe.unet) as calls:
        call(pipe, steps=1)
    _, factor, *_, kwargs = calls[0]
    side = 8 // factor
    shape = torch.maximum(filled(BOX, side, side), filled(OTHER, side, side)).flatten()
    level = added_of(kwargs)[2, :, MUG[0]]
    torch.testing.assert_close(level / level.max(), shape)


def test_pictures_that_are_not_square(pipe):
    with Paint(LAYOUT, weight=1.0).on(pipe, PROMPT), Watching(pipe.unet) as calls:
        call(pipe, steps=1, height=40, width=24)  # latents of 10 x 6
    for _, factor, *_, kwargs in calls:
        level = added_of(kwargs)[2, :, HAT[0]]
        torch.testing.assert_close(level / level.max(), filled(OTHER, 10 // factor, 6 // factor).flatten())


def test_the_bump_is_a_gaussian_over_its_box():
    box = (0.2, 0.1, 0.7, 0.5)
    field = bump(box, 50, 40, spread=0.5)
    row, column = torch.unravel_index(field.argmax(), field.shape)
    assert abs(float(row + 0.5) / 50 - 0.3) <= 0.011
    assert abs(float(column + 0.5) / 40 - 0.45) <= 0.013
    dense = bump((0.25, 0.25, 0.75, 0.75), 101, 101)
    assert float(dense[50, 50]) == pytest.approx(1.0)
    assert float(bump((0.0, 0.0, 1.0, 1.0), 1, 1, spread=0.1)[0, 0]) == 1.0
    # at one deviation, half a side from the middle, e^-1/2
    edge = bump((0.25, 0.0, 0.75, 1.0), 1, 1000, spread=0.5)[0, 750]
    assert float(edge) == pytest.approx(math.exp(-0.5), abs=2e-3)
    narrow = bump((0.25, 0.0, 0.75, 1.0), 1, 1000, spread=0.25)[0, 750]
    assert float(narrow) == pytest.approx(math.exp(-2), abs=4e-3)


def test_filled_cells_count_the_share_that_is_covered():
    box = (0.13, 0.2, 0.71, 0.9)
    fine = torch.zeros(1000, 1000)
    fine[200:900, 130:710] = 1
    expected = fine.unflatten(0, (5, 200)).unflatten(2, (8, 125)).mean((1, 3))
    torch.testing.assert_close(filled(box, 5, 8), expected, atol=1e-5, rtol=0)


def test_the_largest_logit_is_each_pictures_own(tiny):
    unet = make_pipe(tiny).unet
    attn = unet.get_submodule(next(iter(cross_attentions(unet))))
    hidden, text = (
        torch.randn(3, 9, attn.query_dim, generator=seeded()),
        torch.randn(3, 5, 16, generator=seeded()),
    )
    with torch.no_grad():
        query, key = attn.head_to_batch_dim(attn.to_q(hidden)), attn.head_to_batch_dim(attn.to_k(text))
        expected = (
            torch.stack([logits.max() for logits in (query @ key.transpose(1, 2)).chunk(3)]) * attn.scale
        )
        torch.testing.assert_close(largest_logit(attn, hidden, text), expected)


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_the_noises_deviation_is_that_of_the_schedule(tiny, kind):
    scheduler = kind.from_config(tiny.make_scheduler().config)
    scheduler.set_timesteps(7)
    for index, timestep in enumerate(scheduler.timesteps):
        a = float(scheduler.alphas_cumprod[int(timestep)])
        expected = math.sqrt((1 - a) / a)
        assert noise_deviation(scheduler, index, float(timestep)) == pytest.approx(expected, rel=1e-3)


def test_the_deviation_is_finite_where_nothing_is_left_of_the_picture(tiny):
    config = tiny.make_scheduler(prediction_type="v_prediction").config
    scheduler = DDIMScheduler.from_config(config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    assert noise_deviation(scheduler, 0, 999.0) == pytest.approx(4096, rel=1e-3)


def test_an_aggregate_of_a_guided_model_is_refused(pipe, tiny):
    both = AggregatedPipeline([pipe, make_pipe(tiny)], 0.5, steps=1)
    layout = Layout((("mug", (0, 0, 0.5, 1)),))
    with Soft(layout).on(pipe, "a mug"), pytest.raises(ValueError, match="model 1 must be without Soft or P"):
        both("a mug", num_inference_steps=2)
    assert both("a mug", num_inference_steps=2).images


def test_flow_matching_has_its_own_deviation():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    assert noise_deviation(scheduler, 2, 0.0) == float(scheduler.sigmas[2])


def test_what_cannot_guide_is_refused(pipe):
    for kind in (Soft, Paint):
        for weight in (-1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match=f"weight must be 0 or more, and finite, got {weight}"):
                kind(LAYOUT, weight=weight)
    with pytest.raises(ValueError, match="spread must be positive, got 0"):
        Soft(LAYOUT, spread=0)
    with (
        pytest.raises(ValueError, match="concept must stand in the prompt 'a mug', got 'hat'"),
        Soft(LAYOUT).on(pipe, "a mug"),
    ):
        pytest.fail("it was entered")
    with (
        pytest.raises(ValueError, match="prompt must be one text, to find the concepts' words in, got "),
        Soft(LAYOUT).on(pipe, [PROMPT, PROMPT]),
    ):
        pytest.fail("it was entered")
    wide = Layout((("mug", (0, 0, 9, 4)),), unit="latent")
    with (
        pytest.raises(ValueError, match=r"box of 'mug' must lie within 0, 0, 8, 8 \(latent\), got 0, 0, 9"),
        Soft(wide).on(pipe, PROMPT),
    ):
        call(pipe)
