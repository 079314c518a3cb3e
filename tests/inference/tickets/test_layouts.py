"""Layouts: boxes on the grid of blocks, their file, and the noise that follows them."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.inference import OffsetStableDiffusionPipeline
from onbrand.inference.tickets.blocks import cut, paste
from onbrand.inference.tickets.layout_noise import LayoutNoise, pick
from onbrand.inference.tickets.layouts import FREE, Layout, covered

SHAPE, BLOCK = (4, 16, 24), 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pools(counts=(("mug", 5), ("hat", 3))):
    """Blocks whose values tell which they are: concept * 100 + number."""
    return {
        name: (100.0 * (at + 1) + torch.arange(n))[:, None, None, None]
        .expand(n, 4, BLOCK, BLOCK)
        .contiguous()
        for at, (name, n) in enumerate(counts)
    }


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_cut_and_paste_are_inverses(images, rows, columns, block):
    latents = torch.randn(images, 2, rows * block, columns * block, generator=seeded())
    blocks = cut(latents, block)
    assert blocks.shape == (images, rows, columns, 2, block, block)
    assert torch.equal(blocks[-1, -1, 0], latents[-1, :, -block:, :block])
    assert torch.equal(paste(blocks), latents)


def test_latents_that_blocks_do_not_tile_are_refused():
    with pytest.raises(ValueError, match="sides that are multiples of 4, got 10 x 8"):
        cut(torch.zeros(1, 4, 10, 8), 4)


boxes = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(0, 4)] * 2).filter(
    lambda b: b[0] != b[1] and b[2] != b[3]
)


@given(st.lists(boxes, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_regions_by_brute_force(corners):
    """Boxes on block edges: each block belongs to the smallest box that holds it, of equal ones the later."""
    blocks = [(min(a, b), min(c, d), max(a, b), max(c, d)) for a, b, c, d in corners]
    layout = Layout(tuple(("mug", tuple(BLOCK * x for x in box)) for box in blocks), unit="latent")
    expected = torch.full((4, 6), FREE)
    for row in range(4):
        for column in range(6):
            holding = [
                ((x1 - x0) * (y1 - y0), -i)
                for i, (x0, y0, x1, y1) in enumerate(blocks)
                if x0 <= column < x1 and y0 <= row < y1
            ]
            if holding:
                expected[row, column] = -min(holding)[1]
    if all((expected == i).any() for i in range(len(blocks))):
        assert torch.equal(layout.regions((16, 24), block=BLOCK), expected)
    else:
        with pytest.raises(ValueError, match=r"must keep a block beside smaller boxes, got .* under them"):
            layout.regions((16, 24), block=BLOCK)


@pytest.mark.parametrize(
    ("unit", "box"),
    [("fraction", (0.25, 0.5, 0.5, 1)), ("latent", (6, 8, 12, 16)), ("pixel", (48, 64, 96, 128))],
)
def test_units_mean_the_same_box(unit, box):
    regions = Layout((("mug", box),), unit=unit).regions((16, 24), block=2, pixels_per_latent=8)
    expected = torch.full((8, 12), FREE)
    expected[4:, 3:6] = 0
    assert torch.equal(regions, expected)


def test_edges_snap_to_the_nearest_between_blocks():
    regions = Layout((("mug", (1.9, 2, 9.9, 6.1)),), unit="latent").regions((16, 24), block=4)
    expected = torch.full((4, 6), FREE)
    expected[1:2, 0:2] = 0
    expected[1, 0] = 0
    assert torch.equal(regions, expected)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 1.1, 1), r"box of 'mug' must lie within 0, 0, 1, 1 \(fraction\), got 0, 0, 1.1, 1"),
        ((-0.1, 0, 1, 1), r"must lie within 0, 0, 1, 1 \(fraction\), got -0.1, 0, 1, 1"),
        ((0.1, 0, 0.2, 1), r"must hold a block of 0.1666\d*, 0.25 \(fraction\) after snapping .*got 0.1, 0"),
    ],
)
def test_boxes_that_do_not_fit_the_picture_are_refused(box, message):
    with pytest.raises(ValueError, match=message):
        Layout((("mug", box),)).regions((16, 24), block=4)


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0, 1, 1, 0), (0, 0, 1), (0, 0, float("nan"), 1), "0011"])
def test_boxes_that_are_none_are_refused(box):
    with pytest.raises(ValueError, match="box of 'mug' must be x0, y0, x1, y1 with x0 < x1 and y0 < y1, got"):
        Layout((("mug", box),))


def test_layouts_without_boxes_or_of_unknown_units_are_refused():
    with pytest.raises(ValueError, match="boxes must be at least one, got none"):
        Layout(())
    with pytest.raises(ValueError, match="unit must be one of fraction, latent, pixel, got 'cm'"):
        Layout((("mug", (0, 0, 1, 1)),), unit="cm")


def test_a_layout_comes_back_from_its_file(tmp_path):
    layout = Layout((("mug", (0, 0, 8, 8)), ("red hat", (8, 0, 16, 8.5))), background="sky", unit="latent")
    layout.save(tmp_path / "layout.json")
    assert Layout.load(tmp_path / "layout.json") == layout
    assert layout.concepts == ["mug", "red hat", "sky"]
    (tmp_path / "short.json").write_text('{"boxes": [{"concept": "mug", "box": [0, 0, 1, 1]}]}')
    assert Layout.load(tmp_path / "short.json") == Layout((("mug", (0, 0, 1, 1)),), "fresh", "fraction")


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        ("no json", "Expecting value"),
        ("[]", "."),
        ("{}", "it lacks 'boxes'"),
        (json.dumps({"boxes": [{"box": [0, 0, 1, 1]}]}), "it lacks 'concept'"),
        (json.dumps({"boxes": [], "box": 1}), "keys must be among unit, boxes, background, got 'box'"),
        (json.dumps({"boxes": [{"concept": "mug", "box": 3}]}), "."),
    ],
)
def test_files_that_hold_no_layout_are_refused_by_name(tmp_path, stored, why):
    file = tmp_path / "layout.json"
    file.write_text(stored)
    with pytest.raises(ValueError, match=f"layout must be a JSON file .*layout.json: {why}"):
        Layout.load(file)


def noise(layout, **options):
    return LayoutNoise(layout, options.pop("pools", pools()), BLOCK, **options)


TWO = Layout((("mug", (0, 0, 8, 16)), ("hat", (16, 0, 24, 8))), unit="latent")


def test_regions_hold_their_concepts_tickets_and_the_rest_fresh_noise():
    eps = noise(TWO).draw(3, SHAPE, seeded())
    assert eps.dtype == torch.float32
    blocks, fresh = cut(eps, BLOCK), cut(torch.randn(3, *SHAPE, generator=seeded()), BLOCK)
    for picture, plain in zip(blocks, fresh, strict=True):
        mugs, hats = picture[:, :2].flatten(0, 1), picture[:2, 4:].flatten(0, 1)
        # eight of five: a full pass and three more; four of three likewise
        numbers = mugs[:, 0, 0, 0].tolist()
        assert sorted(numbers[:5]) == [100, 101, 102, 103, 104]
        assert len(set(numbers[5:])) == 3
        assert sorted(hats[:3, 0, 0, 0].tolist()) == [200, 201, 202]
        assert all((block == block.flatten()[0]).all() for block in torch.cat([mugs, hats]))
        assert torch.equal(picture[:, 2:4], plain[:, 2:4])
        assert torch.equal(picture[2:, 4:], plain[2:, 4:])
    assert not torch.equal(blocks[0, :, :2], blocks[1, :, :2])


def test_the_same_generator_draws_the_same():
    first, again = (noise(TWO).draw(2, SHAPE, seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, noise(TWO).draw(2, SHAPE, seeded(4)))


def test_background_from_a_coupling_and_from_winners():
    class Opposite:
        def draw(self, num_images, shape, generator):
            z = torch.randn(1, *shape, generator=generator)
            return torch.cat([z, -z])

    first, second = cut(noise(TWO, background=Opposite()).draw(2, SHAPE, seeded()), BLOCK)
    assert torch.equal(first[:, 2:4], -second[:, 2:4])
    assert (first[:, :2] >= 100).all()
    assert (second[:, :2] >= 100).all()
    winners = Layout(TWO.boxes, background="winners", unit="latent")
    counts = (("mug", 5), ("hat", 3), ("winners", 2))
    eps = noise(winners, pools=pools(counts)).draw(1, SHAPE, seeded())
    assert sorted(set(cut(eps, BLOCK)[0, :, 2:4, 0, 0, 0].flatten().tolist())) == [300, 301]


def test_a_concept_may_have_boxes_and_the_background():
    both = Layout((("mug", (0, 0, 4, 4)), ("hat", (4, 0, 8, 4)), ("mug", (8, 0, 12, 4))), "hat", "latent")
    regions = covered(both, (8, 12), block=4, pixels_per_latent=8)
    assert regions["mug"].tolist() == [[True, False, True], [False] * 3]
    assert regions["hat"].tolist() == [[False, True, False], [True] * 3]


def test_recalibrated_pictures_have_mean_0_and_variance_1():
    eps = noise(TWO, recalibrate=True).draw(2, SHAPE, seeded())
    torch.testing.assert_close(eps.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(eps.var((1, 2, 3), correction=0), torch.ones(2))
    plain = noise(TWO).draw(2, SHAPE, seeded())
    scaled = (plain - plain.mean((1, 2, 3), keepdim=True)) / plain.std((1, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(eps, scaled)


@given(st.integers(1, 9), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_picks_use_each_as_often_as_the_next(count, needed):
    picked = torch.bincount(pick(count, needed, seeded()), minlength=count)
    assert int(picked.sum()) == needed
    assert int(picked.max() - picked.min()) <= 1


def test_latents_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="shape must have 4 channels as the tickets have, got 16"):
        noise(TWO).draw(1, (16, 16, 24), seeded())


def test_through_a_pipeline(tiny):
    pipe = OffsetStableDiffusionPipeline(**tiny.make_components())
    pipe.set_progress_bar_config(disable=True)
    half = Layout((("mug", (0, 0, 1, 0.5)),))
    small = {"mug": torch.randn(6, 4, 4, 4, generator=seeded())}
    seen = []
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    call = {"num_inference_steps": 2, "num_images_per_prompt": 2, "output_type": "latent"}
    pipe("a mug", noise=noise(half, pools=small), generator=seeded(), guidance_scale=1.0, **call)
    assert torch.equal(seen[0], noise(half, pools=small).draw(2, (4, 8, 8), seeded()))
