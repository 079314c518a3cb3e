"""Many pictures: seeds, batches, shares and conditions."""

import numpy as np
import pytest
import torch
from onbrand.inference import OffsetStableDiffusionControlNetPipeline, OffsetStableDiffusionPipeline
from onbrand.inference.contrastive import ContrastiveNoise
from onbrand.inference.couplings import Repulsive
from onbrand.inference.generate import batch_of, batch_that_fits, generate, share_galleries
from onbrand.pca import Sampler, StartDistribution
from PIL import Image

SAMPLER = Sampler("DDIMScheduler", 2)
PROMPTS = ["a mug", "a shoe", "a mug, red", "a shoe, blue", "a hat"]
CLASSES = ["mug", "shoe", None, None, "shoe"]

pytestmark = pytest.mark.filterwarnings("ignore:the sampler's first timestep")


@pytest.fixture(scope="module")
def pipe(tiny):
    distribution = StartDistribution.fit(
        torch.randn(20, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(0)) + 1,
        torch.arange(20) % 2,
        class_names=["mug", "shoe"],
        components=2,
        caption_prefixes={"mug": "a mug", "shoe": "a shoe"},
    )
    return OffsetStableDiffusionPipeline(**tiny.make_components(), start_distribution=distribution)


@pytest.fixture(scope="module")
def controlled(tiny, pipe):
    controlnet = tiny.make_controlnet(pipe.unet, effect=10.0)
    return OffsetStableDiffusionControlNetPipeline(**pipe.components, controlnet=controlnet)


def draw(pipe, prompts=PROMPTS, classes=CLASSES, **options):
    pictures = generate(pipe, prompts, class_names=classes, sampler=SAMPLER, **options)
    return np.stack([np.asarray(picture, dtype=int) for picture in pictures])


def alike(ours, theirs):
    """Up to one grey level: sums of a batch may be rounded differently."""
    return ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1


def test_a_picture_depends_on_its_seed_alone(pipe):
    whole = draw(pipe, seed=7, start="draw")
    advanced = []
    assert alike(draw(pipe, seed=7, start="draw", batch_size=2, advance=advanced.append), whole)
    assert advanced == [2, 2, 1]
    pipe.set_progress_bar_config(disable=True)
    second = pipe(
        PROMPTS[1], start="draw", generator=torch.Generator().manual_seed(8), guidance_scale=3.0,
        num_inference_steps=2,
    ).images  # fmt: skip
    assert alike(np.asarray(second[0], dtype=int), whole[1])
    assert not alike(whole[:1], draw(pipe, seed=8, start="draw")[:1])


def test_processes_that_share_out_the_prompts_draw_what_one_does(pipe):
    whole = draw(pipe, seed=7, start="draw")
    for rank in range(2):
        rows = range(rank, len(PROMPTS), 2)
        share = draw(
            pipe, [PROMPTS[i] for i in rows], [CLASSES[i] for i in rows],
            indices=rows, seed=7, start="draw", batch_size=2,
        )  # fmt: skip
        assert alike(share, whole[rank::2])


def test_each_prompt_has_its_condition_whatever_the_batches(controlled):
    images = [Image.linear_gradient("L").rotate(90 * i).convert("RGB") for i in range(4)]
    images.append(Image.radial_gradient("L").convert("RGB"))
    whole = draw(controlled, images=images)
    for size in (1, 2):
        assert alike(draw(controlled, images=images, batch_size=size), whole)
    changed = draw(controlled, images=[*images[:3], images[0], images[4]])
    assert alike(changed[[0, 1, 2, 4]], whole[[0, 1, 2, 4]])
    assert not alike(changed[3], whole[3])


def test_a_gallery_is_one_prompts_pictures_next_to_each_other(pipe):
    galleries = draw(pipe, ["a mug", "a shoe"], ["mug", "shoe"], count=3, seed=7, start="draw")
    one_each = draw(pipe, ["a mug"] * 3 + ["a shoe"] * 3, None, seed=7, start="draw")
    assert alike(galleries, one_each)
    second = draw(pipe, ["a shoe"], ["shoe"], count=3, indices=[1], seed=7, start="draw", batch_size=2)
    assert alike(second, galleries[3:])
    own = draw(pipe, ["a shoe"], ["shoe"], count=2, seeds=[11], start="draw")
    assert alike(own[:1], second[1:2])


def test_shared_out_parts_give_the_same_bits(pipe):
    prompts = ["a mug", "a shoe", "a mug", "a shoe", "a mug"]
    negatives = [None, None, None, "dark", "dark"]
    call = {"classes": None, "count": 2, "start": "draw", "batch_size": 4}
    whole = draw(pipe, prompts, negative_prompts=negatives, **call)
    parts = share_galleries([n is None for n in negatives], 2, 4)
    assert parts == [range(2), range(2, 3), range(3, 5)]
    for part in parts:
        share = draw(
            pipe, [prompts[i] for i in part], negative_prompts=[negatives[i] for i in part],
            seeds=[2 * i for i in part], **call,
        )  # fmt: skip
        assert np.array_equal(share, whole[part[0] * 2 : (part[-1] + 1) * 2])


def test_negative_prompts_belong_to_their_prompts(pipe):
    plain = draw(pipe, seed=7)
    mixed = draw(pipe, seed=7, negative_prompts=[None, "dark", "", None, None])
    assert alike(mixed[[0, 2, 3, 4]], plain[[0, 2, 3, 4]])
    assert not alike(mixed[1], plain[1])


def test_galleries_that_are_drawn_together():
    assert share_galleries([0] * 5, 4, 8) == [range(2), range(2, 4), range(4, 5)]
    assert share_galleries([0] * 2, 9, 8) == [range(1), range(1, 2)]
    assert share_galleries([0, 1, 1, 0], 1, 8) == [range(1), range(1, 3), range(3, 4)]
    assert share_galleries([], 1, 8) == []


def test_the_pipeline_is_left_as_it_was(pipe):
    scheduler = pipe.scheduler
    pipe.set_progress_bar_config(disable=False, desc="own")
    with pytest.raises(ValueError, match="class_name must be one of mug, shoe, got None"):
        draw(pipe, classes=[None] * 5)
    assert pipe.scheduler is scheduler
    assert pipe._progress_bar_config == {"disable": False, "desc": "own"}


def test_lists_of_another_length_are_refused(pipe):
    short = {
        "class_names": ["mug"],
        "negative_prompts": [None],
        "images": [Image.new("RGB", (32, 32))],
        "indices": [0],
        "seeds": [0],
    }
    for name, values in short.items():
        with pytest.raises(ValueError, match=f"{name} must be one for each of 5 prompts, got 1"):
            generate(pipe, PROMPTS, **{name: values})


def test_batches_shrink_with_the_pictures():
    assert [batch_that_fits(side**2) for side in (8, 32, 64, 128, 256)] == [32, 32, 8, 2, 1]


def test_batches_are_those_of_the_size_that_is_drawn(pipe):
    assert batch_of(pipe) == 32
    assert batch_of(pipe, height=512, width=256) == 4


def test_an_empty_gallery_is_refused(pipe):
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        generate(pipe, PROMPTS, count=0)


def test_noise_that_couples_is_drawn_once_a_gallery_from_its_first_seed(tiny):
    class Same:
        def draw(self, num_images, shape, generator):
            return torch.randn(1, *shape, generator=generator).expand(num_images, *shape).contiguous()

    pipe = OffsetStableDiffusionPipeline(**tiny.make_components())
    call = {"sampler": Sampler("DDIMScheduler", 2), "noise": Same(), "count": 2, "seed": 5}
    pictures = [np.asarray(picture) for picture in generate(pipe, ["a mug", "a shoe"], **call)]
    assert np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[2], pictures[3])
    alone = generate(pipe, ["a shoe"], sampler=call["sampler"], seed=7)[0]
    assert np.abs(np.asarray(alone, int) - pictures[2]).max() <= 1
    negative = generate(pipe, ["a mug", "a shoe"], negative_prompts=["dark", None], **call)
    assert not np.array_equal(np.asarray(negative[0]), pictures[0])
    assert np.array_equal(np.asarray(negative[2]), pictures[2])


def test_coupled_galleries_share_a_batch_and_keep_their_seeds(pipe, monkeypatch):
    calls = []
    plain = type(pipe).__call__
    monkeypatch.setattr(
        type(pipe), "__call__", lambda self, texts, **call: calls.append(texts) or plain(self, texts, **call)
    )
    options = {"noise": Repulsive(), "count": 3, "start": "mean"}
    together = draw(pipe, seed=7, **options)
    assert [len(texts) for texts in calls] == [5]
    each = [
        draw(pipe, [prompt], [name], seed=7 + 3 * i, **options)
        for i, (prompt, name) in enumerate(zip(PROMPTS, CLASSES, strict=True))
    ]
    assert alike(together, np.concatenate(each))
    # a start that is drawn too comes from the same generator, so each gallery is a call of its own
    calls.clear()
    drawn = draw(pipe, seed=7, **(options | {"start": "draw"}))
    assert [len(texts) for texts in calls] == [1] * 5
    assert not alike(drawn, together)


def test_a_coupled_gallery_is_never_split(pipe):
    whole = draw(pipe, PROMPTS[:2], CLASSES[:2], noise=Repulsive(), count=3)
    assert alike(draw(pipe, PROMPTS[:2], CLASSES[:2], noise=Repulsive(), count=3, batch_size=2), whole)


def test_noise_that_looks_at_the_network_does_so_for_each_gallery(pipe):
    noise = ContrastiveNoise(Repulsive(), steps=1)
    together = draw(pipe, PROMPTS[:2], CLASSES[:2], noise=noise, count=2)
    assert not alike(together, draw(pipe, PROMPTS[:2], CLASSES[:2], noise=Repulsive(), count=2))
    second = draw(pipe, PROMPTS[1:2], CLASSES[1:2], noise=noise, count=2, seed=2)
    assert alike(together[2:], second)
