"""Winning tickets: scores against whole calls of the pipeline, who wins, and what becomes of a collection."""

import itertools
import threading

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.data.processes import Processes
from onbrand.inference import OffsetStableDiffusionPipeline, OffsetStableDiffusionXLPipeline, TicketCollection
from onbrand.inference.tickets.attention_maps import capture_maps
from onbrand.inference.tickets.blocks import seeded_noise
from onbrand.inference.tickets.layouts import Layout
from onbrand.inference.tickets.setting import Setting, texts_of
from onbrand.pca import StartDistribution
from onbrand.pca.tensor_file import read_tensors, write_tensors
from onbrand.train.models import TINY_BASE

LAYER = "down_blocks.2.attentions.0.transformer_blocks.0.attn2"
SHAPE = (4, 16, 16)
CONCEPTS = ("mug", "hat", "cup")
LEVELS = {
    "sample_size": 16,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}


def fitted(components=0, classes=("white", "grey")):
    g = torch.Generator().manual_seed(5)
    latents = 3 * torch.randn(1, *SHAPE, generator=g) + torch.randn(24, *SHAPE, generator=g)
    return StartDistribution.fit(
        latents,
        torch.arange(24) % len(classes),
        class_names=list(classes),
        components=components,
        offset_from=901,
    )


def make_pipe(tiny, *, kind="sd", start=None, seed=0, **changes):
    xl = kind == "xl"
    components = tiny.make_xl_components() if xl else tiny.make_components()
    extra = {}
    if xl:
        extra = {
            "use_linear_projection": True,
            "cross_attention_dim": sum(tiny.XL_WIDTHS),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": tiny.XL_TIME_WIDTH,
            "projection_class_embeddings_input_dim": tiny.XL_TIME_IDS * tiny.XL_TIME_WIDTH + tiny.XL_POOLED,
        }
    unet = tiny.make_unet(seed=seed, **LEVELS, **extra)
    made = OffsetStableDiffusionXLPipeline if xl else OffsetStableDiffusionPipeline
    pipe = made(**components | {"unet": unet} | changes)
    pipe.set_progress_bar_config(disable=True)
    if start is not None:
        pipe.register_modules(start_distribution=start)
    return pipe


@pytest.fixture
def pipe(tiny):
    return make_pipe(tiny)


class Given:
    def __init__(self, eps):
        self.eps = eps

    def draw(self, num_images, shape, generator):
        return self.eps.reshape(num_images, *shape)


def plain_map(pipe, prompt, seed, *, layer=LAYER, **call):
    """(cells, tokens) of the conditional half at the first step of a call with guidance."""
    eps = seeded_noise([seed], SHAPE)
    with capture_maps(pipe.unet, layer, stop=True) as maps:
        pipe(prompt, noise=Given(eps), guidance_scale=5.0, output_type="latent", **call)
    return maps[0][1]


def scaled(level):
    return (level - level.min()) / (level.max() - level.min())


def plain_score(pipe, own, other, seed, *, order=(0, 1), **call):
    """S_own(other) as one would first write it; three letters are three tokens."""
    prompt = "a {} and a {}".format(*[(own, other)[i] for i in order])
    first = 2 if order[0] == 0 else 2 + len(other) + 3 + 1
    level = plain_map(pipe, prompt, seed, **call)[:, first : first + len(own)].mean(-1)
    return scaled(level)


def same(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["sd", "xl", "start", "euler", "text"])
def test_scores_are_those_of_whole_calls(tiny, kind):
    start = fitted() if kind in ("start", "text") else None
    changes = {}
    if kind == "euler":
        changes["scheduler"] = EulerDiscreteScheduler.from_config(tiny.make_scheduler().config)
    pipe = make_pipe(tiny, kind=kind, start=start, **changes)
    options = {"class_name": "grey"} if start is not None else {}
    if kind == "text":  # another x_start under each text

        def expected(class_ids, text_embeds=None, size=None):
            return text_embeds.float().mean(1).reshape(-1, 1, 1, 1).expand(-1, *SHAPE) * 50

        start.expected = expected
        start.register_to_config(family="text")
    tickets = TicketCollection.build(pipe, CONCEPTS, noises=3, seed=7, batch_size=4, **options)
    assert tickets.scores.shape == (3, 3, 3, 4, 4)
    assert tickets.scores.isnan().sum() == 3 * 3 * 16  # a concept against itself
    assert tickets.setting.layer == LAYER
    for (i, own), (j, other) in itertools.permutations(enumerate(CONCEPTS), 2):
        order = (0, 1) if i < j else (1, 0)
        for n in (0, 2):
            plain = plain_score(pipe, own, other, 7 + n, order=order, **options)
            same(tickets.scores[i, j, n].flatten(), plain)


def test_the_start_changes_scores(tiny):
    pipe = make_pipe(tiny, start=fitted())
    mean, none, plain = (
        TicketCollection.build(p, CONCEPTS, noises=2, start=start, class_name=name)
        for p, start, name in (
            (pipe, "mean", "white"),
            (pipe, None, "white"),
            (make_pipe(tiny), "mean", None),
        )
    )
    same(none.scores, plain.scores)
    assert (mean.scores - none.scores).abs().nan_to_num().max() > 0.01


def test_both_orders_are_averaged(pipe):
    tickets = TicketCollection.build(pipe, CONCEPTS, noises=2, both_orders=True, batch_size=3)
    for (i, own), (j, other) in itertools.permutations(enumerate(CONCEPTS), 2):
        found = [plain_score(pipe, own, other, 1, order=order) for order in ((0, 1), (1, 0))]
        same(tickets.scores[i, j, 1].flatten(), sum(found) / 2)


def test_one_prompt_that_names_all_concepts_is_read_once(pipe):
    counted = []
    tickets = TicketCollection.build(pipe, CONCEPTS, noises=2, prompt="mug hat cup", advance=counted.append)
    level = plain_map(pipe, "mug hat cup", 1)
    for i, j in itertools.permutations(range(3), 2):
        same(tickets.scores[i, j, 1].flatten(), scaled(level[:, 1 + 3 * i : 4 + 3 * i].mean(-1)))
    assert sum(counted) == 2


def test_any_cross_attention_can_be_read(pipe):
    layer = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    tickets = TicketCollection.build(pipe, CONCEPTS[:2], noises=1, layer=layer)
    assert (tickets.setting.block, tickets.setting.grid) == (2, (8, 8))
    plain = plain_score(pipe, "mug", "hat", 0, layer=layer)
    same(tickets.scores[0, 1, 0].flatten(), plain)


def test_other_sizes_and_plain_pipelines(tiny, pipe):
    wide = TicketCollection.build(pipe, CONCEPTS, noises=1, height=32, width=64)
    assert wide.setting.latent_shape == (4, 8, 16)
    assert wide.scores.shape[3:] == (2, 4)
    plain = StableDiffusionPipeline(**tiny.make_components() | {"unet": pipe.unet})
    same(
        TicketCollection.build(plain, CONCEPTS, noises=2).scores,
        TicketCollection.build(pipe, CONCEPTS, noises=2).scores,
        atol=0,
    )
    assert TicketCollection.build(plain, CONCEPTS, noises=1, width=64).setting.latent_shape == (4, 16, 16)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batches_change_nothing(pipe, batch_size):
    counted = []
    tickets = TicketCollection.build(pipe, CONCEPTS, noises=3, batch_size=batch_size, advance=counted.append)
    same(tickets.scores, TicketCollection.build(pipe, CONCEPTS, noises=3).scores)
    assert sum(counted) == 3 * len(texts_of(CONCEPTS)) == 9


def test_processes_share_the_work(tiny):
    barrier, lists, found, passes = threading.Barrier(2), [None, None], [None, None], [0, 0]
    pipes = [make_pipe(tiny) for _ in range(2)]

    def process(index):
        def gather(items):
            lists[index] = items
            barrier.wait()
            return lists[0] + lists[1]

        def advance(count):
            passes[index] += count

        found[index] = TicketCollection.build(
            pipes[index],
            CONCEPTS,
            noises=5,
            batch_size=2,
            processes=Processes(index, 2, gather),
            advance=advance,
        )

    threads = [threading.Thread(target=process, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    alone = TicketCollection.build(make_pipe(tiny), CONCEPTS, noises=5, batch_size=2)
    for one in found:
        assert torch.equal(one.scores.nan_to_num(-1), alone.scores.nan_to_num(-1))
    assert sorted(passes) == [6, 9]


def test_an_interrupted_build_goes_on(pipe, tmp_path):
    build = {"noises": 6, "batch_size": 2, "resume_from": tmp_path / "parts"}

    def stop(count):
        if len(list((tmp_path / "parts").glob("*.safetensors"))) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TicketCollection.build(pipe, CONCEPTS, **build, advance=stop)
    assert not [m for m in pipe.unet.modules() if m._forward_pre_hooks or "forward" in m.__dict__]
    passes, counted = [], []
    pipe.unet.conv_in.register_forward_hook(lambda module, args, out: passes.append(len(args[0])))
    tickets = TicketCollection.build(pipe, CONCEPTS, **build, advance=counted.append)
    assert passes == [1, *[2] * 4]  # the fingerprint; of the last two noises the beginning and three texts
    assert sum(counted) == 18
    fresh = TicketCollection.build(pipe, CONCEPTS, noises=6, batch_size=2)
    same(tickets.scores, fresh.scores, atol=0)
    passes.clear()
    (next(iter((tmp_path / "parts").glob("*.safetensors")))).write_bytes(b"half")
    same(TicketCollection.build(pipe, CONCEPTS, **build).scores, fresh.scores, atol=0)
    assert passes == [1, *[2] * 4]
    passes.clear()
    TicketCollection.build(pipe, CONCEPTS, **build, num_inference_steps=4)
    assert len(passes) == 1 + 3 * 4  # other settings share no parts


def test_extending_equals_building(pipe):
    whole = TicketCollection.build(pipe, CONCEPTS, noises=5, seed=2)
    counted = []
    small = TicketCollection.build(pipe, CONCEPTS[:2], noises=3, seed=2)
    grown = small.extend(pipe, CONCEPTS[2:], noises=2, advance=counted.append)
    assert grown.concepts == whole.concepts
    assert grown.seeds == whole.seeds == (2, 3, 4, 5, 6)
    same(grown.scores, whole.scores)
    assert sum(counted) == 3 * 2 + 2 * 3
    assert small.scores.shape[:3] == (2, 2, 3)


def test_merging_joins_and_extending_completes(pipe):
    whole = TicketCollection.build(pipe, CONCEPTS, noises=4)
    first = TicketCollection.build(pipe, CONCEPTS[:2], noises=2)
    merged = first.merge(TicketCollection.build(pipe, CONCEPTS[1:], noises=2, seed=2))
    assert merged.concepts == CONCEPTS
    assert merged.seeds == (0, 1, 2, 3)
    same(merged.scores[0, 1, :2], whole.scores[0, 1, :2])
    same(merged.scores[2, 1, 2:], whole.scores[2, 1, 2:])
    assert merged.scores[0, 1, 2:].isnan().all()
    with pytest.raises(ValueError, match="collected for each pair, got none of 'mug' against 'cup': extend"):
        merged.winners("mug")
    same(merged.extend(pipe).scores, whole.scores)


def test_only_alike_collections_merge(tiny, pipe):
    first = TicketCollection.build(pipe, CONCEPTS, noises=1)
    with pytest.raises(ValueError, match="both_orders must be False as in the first collection, got True"):
        first.merge(TicketCollection.build(pipe, CONCEPTS, noises=1, both_orders=True))
    other = make_pipe(tiny, seed=1)
    message = r"model and start must be those .* within an RMS of 0.05, got 0\.\d+"
    with pytest.raises(ValueError, match=message):
        first.merge(TicketCollection.build(other, CONCEPTS, noises=1))
    with pytest.raises(ValueError, match=message):
        first.extend(other)
    with pytest.raises(ValueError, match=message):
        first.check(make_pipe(tiny, start=fitted(classes=("white",)), seed=2))
    with pytest.raises(ValueError, match="test map of 16 cells as the tickets' did, got 8"):
        first.merge(TicketCollection.build(pipe, CONCEPTS, noises=1, height=32, width=64))
    pipe.scheduler.register_to_config(timestep_spacing="trailing")
    with pytest.raises(ValueError, match="sampler must begin at timestep 981, got 999"):
        first.extend(pipe)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_of_a_model_are_the_same_model(tiny, pipe, dtype):
    tickets = TicketCollection.build(pipe, CONCEPTS, noises=2)
    cast = make_pipe(tiny).to(dtype)
    tickets.check(cast)
    found = TicketCollection.build(cast, CONCEPTS, noises=2).scores
    assert found.dtype == torch.float32
    assert (found - tickets.scores).square().nanmean().sqrt() < 0.05


def test_a_saved_collection_comes_back_without_its_noise(pipe, tmp_path):
    tickets = TicketCollection.build(pipe, CONCEPTS, noises=4, class_name=None)
    tickets.save(tmp_path / "tickets")
    loaded = TicketCollection.load(tmp_path / "tickets")
    same(loaded.scores, tickets.scores, atol=0)
    assert (loaded.concepts, loaded.seeds, loaded.setting, loaded.fingerprint) == (
        tickets.concepts,
        tickets.seeds,
        tickets.setting,
        tickets.fingerprint,
    )
    same(loaded.extend(pipe, noises=1).scores[:, :, :4], tickets.scores, atol=0)
    scores, noise = 9 * 4 * 16 * 4, 4 * 4 * 16 * 16 * 4
    assert sum(file.stat().st_size for file in (tmp_path / "tickets").iterdir()) < scores + 4096 < noise
    with pytest.raises(ValueError, match=r"a folder with tickets.safetensors, got .*nothing"):
        TicketCollection.load(tmp_path / "nothing")
    file = tmp_path / "tickets" / "tickets.safetensors"
    found, told = read_tensors(file, what="tickets")
    more = {"collection": told["collection"].replace('"cup"', '"cup", "pot"')}
    for tensors, metadata, message in (
        (found, more, r"shape \(4, 4, 4, 4, 4\) as .*tickets.safetensors says, got \(3, 3, 4"),
        (
            {"matrix": loaded.scores},
            told,
            r"tickets.safetensors must hold scores of concepts, got \['matrix'\]",
        ),
        (found, {}, r"tickets.safetensors must hold scores of concepts, got \['scores'\]"),
    ):
        write_tensors(tensors, file, metadata)
        with pytest.raises(ValueError, match=message):
            TicketCollection.load(tmp_path / "tickets")
    file.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"ticket collection .*tickets.safetensors must be readable"):
        TicketCollection.load(tmp_path / "tickets")


def test_what_cannot_be_collected_is_refused(tiny, pipe):
    build = TicketCollection.build
    with pytest.raises(ValueError, match=r"at least two, so that each is scored against another: .* got 1"):
        build(pipe, ["mug"])
    with pytest.raises(ValueError, match="concepts must differ, got 'red mug' twice"):
        build(pipe, ["red mug", "Red  mug"])
    with pytest.raises(ValueError, match="noises must be at least 1, got 0"):
        build(pipe, CONCEPTS, noises=0)
    for prompt in ("a {}", "a {0} and a {1}", "a {} and a {}}"):
        with pytest.raises(ValueError, match=r"prompt must have two places \{\} for concepts, or none, got"):
            build(pipe, CONCEPTS, prompt=prompt)
    with pytest.raises(ValueError, match="start must be 'mean' or None, got 'draw'"):
        build(pipe, CONCEPTS, start="draw")
    with pytest.raises(ValueError, match="latents must have sides that are multiples of 4, got 16 x 18"):
        build(pipe, CONCEPTS, width=72, height=64)
    with pytest.raises(ValueError, match="class_name must come with a start distribution"):
        build(pipe, CONCEPTS, class_name="white")
    with pytest.raises(ValueError, match="class_name must be one of white, grey, got None"):
        build(make_pipe(tiny, start=fitted()), CONCEPTS)
    with pytest.raises(ValueError, match="'a long saucer' cut off in 'a mug and a a long saucer'"):
        build(pipe, ["mug", "a long saucer"])
    with pytest.raises(ValueError, match="must stand in the prompt 'a mug', got 'hat'"):
        build(pipe, CONCEPTS[:2], prompt="a mug")
    with pytest.raises(ValueError, match="unet must take 4 channels, got 9"):
        build(make_pipe(tiny, unet=tiny.make_unet(in_channels=9, **LEVELS)), CONCEPTS)
    pipe.unet.conv_in.weight.data.fill_(torch.nan)
    with pytest.raises(
        ValueError, match=r"maps must be finite, got nan or inf with a UNet in torch\.float32"
    ):
        build(pipe, CONCEPTS)


def test_collecting_leaves_the_model_alone(pipe):
    processors = dict(pipe.unet.attn_processors)
    call = {"num_inference_steps": 2, "output_type": "latent"}

    def drawn():
        return pipe("a mug", generator=torch.Generator().manual_seed(0), **call).images

    before = drawn()
    TicketCollection.build(pipe, CONCEPTS, noises=2)
    with pytest.raises(ValueError, match="cut off"):
        TicketCollection.build(pipe, ["mug", "a long saucer"], noises=2)
    assert all(processors[name] is now for name, now in pipe.unet.attn_processors.items())
    assert not [m for m in pipe.unet.modules() if m._forward_pre_hooks or m._forward_hooks]
    assert not [m for m in pipe.unet.modules() if "forward" in m.__dict__]
    assert torch.equal(before, drawn())


def table(scores):
    """A collection of these scores (C, C, N, rows, columns) under made-up names."""
    size, noises, rows, columns = scores.shape[1:]
    setting = Setting(
        "layer", 4, (4, 4 * rows, 4 * columns), 8, "a {} and a {}", False, None, "none", 50, 981
    )
    names = tuple("abcdef"[:size])
    return TicketCollection(names, tuple(range(10, 10 + noises)), scores, setting, "")


def random_scores(seed, concepts, noises=3):
    scores = torch.rand(concepts, concepts, noises, 2, 3, generator=torch.Generator().manual_seed(seed))
    scores[range(concepts), range(concepts)] = torch.nan
    return scores


def brute_force(scores, member, members, t_obj, t_neg):
    """Where `member` wins, block by block, from the definition."""
    s, total = scores.numpy(), len(scores)

    def wins(i, block):
        others = [j for j in members if j != i]
        if not others:
            return np.mean([s[i, j][block] for j in range(total) if j != i]) > t_obj
        return all(s[i, j][block] > t_obj for j in others)

    found = []
    for block in np.ndindex(*s.shape[2:]):
        alone = sum(wins(i, block) for i in members) == 1
        kept = t_neg is None or all(s[j, member][block] < t_neg for j in members if j != member)
        if wins(member, block) and alone and kept:
            found.append(block)
    return found


@given(
    st.integers(0, 10**6),
    st.integers(2, 5),
    st.integers(1, 5),
    st.sampled_from([0.2, 0.35, 0.5]),
    st.sampled_from([None, 0.3, 0.6]),
)
@settings(max_examples=80, deadline=None)
def test_winners_by_brute_force(seed, concepts, among, t_obj, t_neg):
    scores = random_scores(seed, concepts)
    tickets, members = table(scores), list(range(min(among, concepts)))
    names = [tickets.concepts[i] for i in members]
    for member, name in zip(members, names, strict=True):
        expected = brute_force(scores, member, members, t_obj, t_neg)
        if not expected:
            with pytest.raises(
                ValueError, match=rf"'{name}' must score above {t_obj} against .* got none in 3"
            ):
                tickets.winners(name, names, t_obj=t_obj, t_neg=t_neg)
            continue
        found = tickets.winners(name, names, t_obj=t_obj, t_neg=t_neg)
        places = torch.stack([found.noise, found.row, found.column], 1).tolist()
        assert [tuple(place) for place in places] == expected
        assert len(found) == len(expected)
        assert not found.fell_back.any()
        for score, block in zip(found.score.tolist(), expected, strict=True):
            others = [j for j in members if j != member] or [j for j in range(concepts) if j != member]
            own = [float(scores[member, j][block]) for j in others]
            assert score == pytest.approx(min(own) if len(members) > 1 else np.mean(own))


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 4), st.sampled_from([0.3, 0.5]))
@settings(max_examples=40, deadline=None)
def test_background_winners_by_brute_force(seed, concepts, among, t_bg):
    scores = random_scores(seed, concepts)
    tickets, members = table(scores), range(min(among, concepts))
    means = [np.mean([scores[i, j].numpy() for j in range(concepts) if j != i], axis=0) for i in members]
    expected = [b for b in np.ndindex(3, 2, 3) if all(mean[b] < t_bg for mean in means)]
    names = [tickets.concepts[i] for i in members]
    if not expected:
        with pytest.raises(ValueError, match=rf"background must score below {t_bg} .* got none in 3 noises"):
            tickets.background_winners(names, t_bg=t_bg)
        return
    found = tickets.background_winners(names, t_bg=t_bg)
    places = torch.stack([found.noise, found.row, found.column], 1).tolist()
    assert [tuple(place) for place in places] == expected


def fallback_scores():
    """a against b in one noise of six blocks: .9 wins, then .4 and .3; b wins one, and one is ambiguous."""
    scores = torch.full((2, 2, 1, 2, 3), torch.nan)
    scores[0, 1] = torch.tensor([[[0.9, 0.4, 0.3], [0.45, 0.8, 0.2]]])
    scores[1, 0] = torch.tensor([[[0.1, 0.2, 0.1], [0.7, 0.9, 0.1]]])
    return scores


def test_too_few_winners_are_filled_with_the_best_of_the_rest():
    tickets = table(fallback_scores())
    found = tickets.winners("a", at_least=3)
    assert torch.stack([found.row, found.column], 1).tolist() == [[0, 0], [0, 1], [0, 2]]
    assert found.fell_back.tolist() == [False, True, True]
    torch.testing.assert_close(found.score, torch.tensor([0.9, 0.4, 0.3]))
    # neither the block that b wins nor the ambiguous one, however many are asked for
    assert len(tickets.winners("a", at_least=50)) == 4
    assert len(tickets.winners("a")) == 1
    with pytest.raises(ValueError, match=r"above 0.95 against b .*: the best scores 0.90; collect more"):
        tickets.winners("a", t_obj=0.95, at_least=3)


def test_unknown_concepts_are_refused_with_the_nearest(pipe):
    tickets = TicketCollection.build(pipe, CONCEPTS, noises=1)
    with pytest.raises(ValueError, match=r"one of mug, hat, cup, got 'cups' \(did you mean 'cup'\?\)"):
        tickets.winners("cups")
    with pytest.raises(ValueError, match=r"concept must be one of mug, hat, cup, got 'sky'$"):
        tickets.layout_noise(Layout((("mug", (0, 0, 1, 0.5)),), background="sky"))


def test_tickets_are_blocks_of_the_seeded_noises():
    tickets = table(random_scores(0, 2, noises=4))
    won = tickets.winners("a", t_obj=0.2)
    blocks = tickets.blocks(won)
    assert len(set(won.noise.tolist())) > 1
    for block, n, row, column in zip(blocks, won.noise, won.row, won.column, strict=True):
        noise = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(10 + int(n)))
        assert torch.equal(block, noise[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4])


def test_layout_noise_is_made_of_winners_and_tells_what_fell_back():
    scores = torch.cat([fallback_scores(), torch.full((2, 2, 1, 2, 3), 0.01)], dim=2)
    tickets = table(scores)
    layout = Layout((("a", (0, 0, 1, 0.5)),), background="winners")
    with pytest.warns(UserWarning, match="too few winners: 2 of 3 tickets of a fall short"):
        noise = tickets.layout_noise(layout, among=["a", "b"], at_least=3)
    assert noise.report["a"] == {
        "needed": 3,
        "winners": 1,
        "fell_back": [{"seed": 10, "row": 0, "column": 1}, {"seed": 10, "row": 0, "column": 2}],
    }
    assert noise.report["winners"] == {"needed": 3, "winners": 6, "fell_back": []}
    eps = noise.draw(1, (4, 8, 12), torch.Generator().manual_seed(0))
    first, second = seeded_noise([10, 11], (4, 8, 12))
    upper = sorted(eps[0, :, :4].unfold(2, 4, 4)[0, 0, :, 0].tolist())
    assert upper == sorted(first[0, 0, [0, 4, 8]].tolist())
    assert set(eps[0, 0, 4, [0, 4, 8]].tolist()) <= set(second[0, [0, 4]][:, [0, 4, 8]].flatten().tolist())


def test_winners_of_a_trained_model_win_where_they_are_put():
    """The tiny base's tickets, each concept's in one half: there its map is the brighter, by many errors."""
    pipe = OffsetStableDiffusionPipeline.from_pretrained(TINY_BASE)
    tickets = TicketCollection.build(pipe, ["mug", "shoe"], noises=64)
    layout = Layout((("mug", (0, 0, 0.5, 1)), ("shoe", (0.5, 0, 1, 1))))
    eps = tickets.layout_noise(layout).draw(64, SHAPE, torch.Generator().manual_seed(0))
    text = pipe.encode_prompt("a mug and a shoe", "cpu", 64, False)[0]
    with capture_maps(pipe.unet, tickets.setting.layer, stop=True) as maps, torch.no_grad():
        pipe.unet(eps, tickets.setting.timestep, text)
    mug, shoe = (maps[0][:, :, position].unflatten(1, (4, 4)) for position in (2, 5))
    for concept, sign, errors in ((mug, 1, 3), (shoe, -1, 1)):
        left_over_right = concept[:, :, :2].mean((1, 2)) - concept[:, :, 2:].mean((1, 2))
        assert sign * left_over_right.mean() > errors * left_over_right.std() / 8
