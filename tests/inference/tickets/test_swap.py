"""Swap: blocks only change places, each region gets its concept's best, and tickets and couplings compose."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.inference import OffsetStableDiffusionPipeline, OffsetStableDiffusionXLPipeline, Soft, Swap
from onbrand.inference.contrastive import ContrastiveNoise
from onbrand.inference.couplings import Independent, Repulsive
from onbrand.inference.start import start_latents
from onbrand.inference.tickets.attention_maps import capture_maps
from onbrand.inference.tickets.blocks import cut
from onbrand.inference.tickets.layout_noise import LayoutNoise
from onbrand.inference.tickets.layouts import Layout
from onbrand.inference.tickets.swap import rearrangement
from onbrand.pca import StartDistribution

PROMPT = "a mug a hat"
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
LEFT = Layout((("mug", (0, 0, 0.5, 1)), ("hat", (0.5, 0, 1, 0.5))))
BLOCK, SIDE = 2, 8
MUG, HAT = [2, 3, 4], [6, 7, 8]  # a token a character, after the start and the first "a"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_pipe(tiny, *, xl=False, start=None):
    kind = OffsetStableDiffusionXLPipeline if xl else OffsetStableDiffusionPipeline
    pipe = kind(**(tiny.make_xl_components() if xl else tiny.make_components()), start_distribution=start)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(params=["plain", "start", "xl"])
def pipe(request, tiny):
    start = None
    if request.param == "start":
        x = torch.randn(20, *tiny.LATENT_SHAPE, generator=seeded()) * 2
        ids = torch.zeros(20, dtype=torch.long)
        start = StartDistribution.fit(x, ids, class_names=["mug"], offset_from=600)
    return make_pipe(tiny, xl=request.param == "xl", start=start)


def call(pipe, noise, *, images=2, steps=3, seed=0, prompt=PROMPT, **more):
    """The noise that the network starts from, with the pipeline's start taken off, and the pictures."""
    seen = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        pictures = pipe(
            prompt, noise=noise, generator=seeded(seed), num_inference_steps=steps, guidance_scale=3.0,
            num_images_per_prompt=images, output_type="latent", **more,
        ).images  # fmt: skip
    finally:
        handle.remove()
    return seen[-steps][:images], pictures


def maps_of(pipe, eps, prompt=PROMPT):
    """Maps (N, cells, tokens) of a whole call that starts from this noise, under the prompt."""
    start = pipe.start_distribution
    x_start = None if start is None else start.mean[0]
    latents = start_latents(pipe.scheduler, 3, x_start, eps)
    with capture_maps(pipe.unet, LAYER) as maps:
        pipe(prompt, latents=latents, num_inference_steps=3, guidance_scale=3.0, output_type="latent",
             num_images_per_prompt=len(eps))  # fmt: skip
    return maps[0][len(eps) :]


def plain_swap(eps, level):
    """One picture's blocks rearranged, written as a search over lists. level: (concepts, cells)."""
    grid = SIDE // BLOCK
    blocks = list(cut(eps[None], BLOCK)[0].flatten(0, 1))
    regions = [
        [r * grid + c for r in range(grid) for c in range(grid) if c < 2],
        [r * grid + c for r in range(grid) for c in range(grid) if c >= 2 and r < 2],
    ]
    owner = [max(range(2), key=lambda c: level[c][i]) for i in range(len(blocks))]
    taken = [
        sorted((i for i in range(len(blocks)) if owner[i] == c), key=lambda i: -level[c][i])[
            : len(regions[c])
        ]
        for c in range(2)
    ]
    for c in range(2):
        left = [i for i in range(len(blocks)) if i not in taken[0] + taken[1]]
        taken[c] += sorted(left, key=lambda i: -level[c][i])[: len(regions[c]) - len(taken[c])]
    return blocks, regions, taken


def test_each_region_gets_the_best_blocks_by_the_maps_of_the_call(pipe):
    inner = Independent()
    eps = inner.draw(2, (4, SIDE, SIDE), seeded())
    maps = maps_of(pipe, eps)
    seen, _ = call(pipe, Swap(LEFT, inner, layer=LAYER))
    if pipe.start_distribution is not None:
        nothing, scheduler = torch.zeros_like(eps), pipe.scheduler
        without_noise = start_latents(scheduler, 3, pipe.start_distribution.mean[0], nothing)
        seen = (seen - without_noise) / start_latents(scheduler, 3, nothing, torch.ones_like(eps))
    for row in range(2):
        level = [maps[row][:, words].mean(-1) for words in (MUG, HAT)]
        level = [((x - x.min()) / (x.max() - x.min())).tolist() for x in level]
        blocks, regions, taken = plain_swap(eps[row], level)
        arrived = list(cut(seen[row][None], BLOCK)[0].flatten(0, 1))
        which = [
            min(range(len(blocks)), key=lambda i: float((blocks[i] - now).abs().max())) for now in arrived
        ]
        assert sorted(which) == list(range(len(blocks)))
        for region, own in zip(regions, taken, strict=True):
            assert {which[cell] for cell in region} == set(own)
            assert all(which[cell] == cell for cell in region if cell in own)


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(4, 25))
@settings(max_examples=60, deadline=None)
def test_a_rearrangement_is_a_permutation_that_serves_the_best_first(seed, concepts, cells):
    g = seeded(seed)
    scores = torch.rand(concepts, cells, generator=g)
    owner = torch.randint(-1, concepts, (cells,), generator=g)
    regions = torch.stack([owner == c for c in range(concepts)])
    source = rearrangement(scores, regions)
    assert sorted(source.tolist()) == list(range(cells))
    likeliest = scores.argmax(0)
    placed = torch.full((cells,), -1)
    placed[source] = owner
    for c in range(concepts):
        own = scores[c][likeliest == c].sort(descending=True).values[: int(regions[c].sum())]
        inside = scores[c][(placed == c) & (likeliest == c)].sort(descending=True).values
        assert torch.equal(own, inside)
    stays = (placed == owner).nonzero()[:, 0]
    assert torch.equal(source[stays], stays)


def test_blocks_where_they_belong_stay():
    regions = torch.tensor([[True, True, False, False]])
    assert rearrangement(torch.tensor([[0.9, 0.8, 0.1, 0.2]]), regions).tolist() == [0, 1, 2, 3]
    assert rearrangement(torch.tensor([[0.1, 0.8, 0.9, 0.2]]), regions).tolist() == [2, 1, 0, 3]


def test_the_same_seed_gives_the_same(tiny):
    pipe, swap = make_pipe(tiny), Swap(LEFT, Independent(), layer=LAYER)
    first, again, other = (call(pipe, swap, seed=seed)[1] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_runs_on_the_noise_of_tickets_couplings_and_contrast(tiny):
    pipe = make_pipe(tiny)
    pools = {
        name: torch.randn(6, 4, BLOCK, BLOCK, generator=seeded(i)) for i, name in enumerate(["mug", "hat"])
    }
    for inner in (
        LayoutNoise(LEFT, pools, BLOCK),
        Repulsive(),
        ContrastiveNoise(Repulsive(), steps=1, width=4),
    ):
        kept, _ = call(pipe, inner)
        moved, _ = call(pipe, Swap(LEFT, inner, layer=LAYER))
        for before, after in zip(cut(kept, BLOCK), cut(moved, BLOCK), strict=True):
            pieces = [x.flatten(0, 1).flatten(1) for x in (before, after)]
            pieces = [x[x[:, 0].sort().indices] for x in pieces]
            torch.testing.assert_close(pieces[0], pieces[1], atol=1e-6, rtol=0)
        assert not torch.equal(kept, moved)


def test_prompts_of_a_call_are_read_each_by_itself(tiny):
    pipe, swap = make_pipe(tiny), Swap(LEFT, Independent(), layer=LAYER)
    prompts = [PROMPT, "hat or mug"]
    seen = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pipe(
        prompts,
        noise=swap,
        generator=seeded(),
        num_inference_steps=3,
        guidance_scale=3.0,
        output_type="latent",
    )
    handle.remove()
    drawn = seeded()
    for row, prompt in enumerate(prompts):
        eps = torch.randn(1, 4, SIDE, SIDE, generator=drawn)

        class Given:
            def draw(self, num_images, shape, generator, eps=eps):
                return eps

        alone, _ = call(pipe, Swap(LEFT, Given(), layer=LAYER), images=1, prompt=prompt)
        torch.testing.assert_close(seen[-3][row : row + 1], alone)


def test_a_concept_may_be_the_background_and_winners_of_it_are_left_where_they_are(tiny):
    pipe = make_pipe(tiny)
    only = Layout((("mug", (0, 0, 0.5, 1)),), background="hat")
    winners = Layout((("mug", (0, 0, 0.5, 1)),), background="winners")
    fresh = Layout((("mug", (0, 0, 0.5, 1)),))
    swapped = [call(pipe, Swap(layout, Independent(), layer=LAYER))[0] for layout in (only, winners, fresh)]
    assert torch.equal(swapped[1], swapped[2])
    assert not torch.equal(swapped[0], swapped[1])


def test_it_sees_what_guides_the_call(tiny):
    pipe, swap = make_pipe(tiny), Swap(LEFT, Independent(), layer=LAYER)
    plain, _ = call(pipe, swap)
    with Soft(LEFT, weight=5.0).on(pipe, PROMPT):
        guided, _ = call(pipe, swap)
    assert not torch.equal(plain, guided)


def test_what_cannot_be_swapped_is_refused_and_the_pipeline_left_alone(tiny):
    pipe = make_pipe(tiny)
    own = pipe.scheduler
    with pytest.raises(ValueError, match="layer must be named where no cross-attention runs at 1/4"):
        call(pipe, Swap(LEFT, Independent()))
    with pytest.raises(ValueError, match="layer must be a cross-attention layer of the UNet"):
        call(pipe, Swap(LEFT, Independent(), layer="attn"))
    with pytest.raises(ValueError, match="concept must stand in the prompt 'a mug', got 'hat'"):
        call(pipe, Swap(LEFT, Independent(), layer=LAYER), prompt="a mug")
    embeds, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    with pytest.raises(ValueError, match="prompt must be one text, to find the concepts' words in, got None"):
        call(
            pipe, Swap(LEFT, Independent(), layer=LAYER), prompt=None, prompt_embeds=embeds,
            negative_prompt_embeds=negative,
        )  # fmt: skip
    assert pipe.scheduler is own
    assert "encode_prompt" not in vars(pipe)
