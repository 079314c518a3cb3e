"""Which class and which start each picture gets."""

import pytest
import torch
from onbrand.inference.choice import check_choices, choose_start, resolve_classes
from onbrand.pca import StartDistribution

SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def distribution():
    x = torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(0))
    return StartDistribution.fit(
        x,
        torch.arange(20) % 2,
        class_names=["mug", "shoe"],
        components=2,
        caption_prefixes={"mug": "a mug", "shoe": "a shoe"},
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_class_by_name_else_by_prefix(distribution):
    prompts = ["a mug", "a shoe", "anything"]
    assert resolve_classes(distribution, prompts, "shoe").tolist() == [1, 1, 1]
    assert resolve_classes(distribution, prompts, ["shoe", None, "mug"]).tolist() == [1, 1, 0]
    assert resolve_classes(distribution, prompts[:2]).tolist() == [0, 1]
    assert resolve_classes(distribution, [None], "mug").tolist() == [0]


def test_the_only_class_needs_no_name():
    only = StartDistribution.fit(torch.zeros(1, *SHAPE), torch.tensor([0]), class_names=["mug"])
    assert resolve_classes(only, ["whatever", None]).tolist() == [0, 0]


def test_no_class_is_an_error_that_lists_them(distribution):
    with pytest.raises(ValueError, match=r"must be one of mug, shoe, got None .* the prompt 'a hat'"):
        resolve_classes(distribution, ["a mug", "a hat"])
    with pytest.raises(ValueError, match=r"must be one of mug, shoe, got 'mugs' \(did you mean 'mug'"):
        resolve_classes(distribution, ["a mug"], "mugs")
    with pytest.raises(ValueError, match="class_name must be one, or one for each of 2 prompts, got 3"):
        resolve_classes(distribution, ["a mug", "a mug"], ["mug"] * 3)


def test_the_mean_of_each_prompts_class(distribution):
    x_start = choose_start(distribution, ["a shoe", "a mug"], 2)
    assert torch.equal(x_start, distribution.mean[[1, 1, 0, 0]])


def test_draws_are_independent_within_a_gallery_and_follow_the_generators(distribution):
    drawn = choose_start(distribution, ["a mug"], 3, start="draw", generator=seeded())
    assert torch.equal(drawn, distribution.sample(torch.zeros(3).long(), seeded()))
    assert len({tuple(x.flatten().tolist()) for x in drawn}) == 3
    listed = choose_start(distribution, ["a mug"], 3, start="draw", generator=[seeded(s) for s in (3, 4, 5)])
    alone = choose_start(distribution, ["a mug"], 1, start="draw", generator=[seeded(4)])
    torch.testing.assert_close(listed[1:2], alone)


def test_pure_noise_has_no_start_and_needs_no_class(distribution):
    assert choose_start(distribution, ["a hat"], 2, start="none") is None
    assert choose_start(None, ["a hat"], 2) is None


def test_given_latents_as_they_are_or_projected(distribution):
    x = torch.randn(4, *SHAPE, generator=seeded())
    prompts = ["a mug", "a shoe"]
    assert torch.equal(choose_start(distribution, prompts, 2, x_start=x), x)
    assert torch.equal(choose_start(None, prompts, 2, x_start=x[0]), x[[0, 0, 0, 0]])
    assert torch.equal(choose_start(None, prompts, 2, x_start=x[:2].half()), x[[0, 0, 1, 1]].half().float())
    projected = choose_start(distribution, prompts, 2, x_start=x[:1], project_start=True)
    torch.testing.assert_close(projected, distribution.project(x[[0] * 4], torch.tensor([0, 0, 1, 1])))
    with pytest.raises(ValueError, match="one for each of 2 prompts or one for each of 4 pictures, got 3"):
        choose_start(distribution, prompts, 2, x_start=x[:3])


@pytest.mark.parametrize(
    ("match", "choices", "options"),
    [
        ("start must be one of mean, draw, none, got 'mode'", {}, {"start": "mode"}),
        ("latents must be the only start, got noise beside", {"noise": 1}, {"latents": torch.zeros(1)}),
        ("x_start must not be given beside start_image", {"x_start": 1, "start_image": 1}, {}),
        ("project_start must come with start_image or x_start, got neither", {"project_start": True}, {}),
    ],
)
def test_contradictions_are_refused(distribution, match, choices, options):
    with pytest.raises(ValueError, match=match):
        check_choices(distribution, **{"latents": None, "start": "mean", **options}, choices=choices)


@pytest.mark.parametrize(
    ("needy", "choices", "start"),
    [
        ("class_name", {"class_name": "mug"}, "mean"),
        ("project_start", {"project_start": True, "x_start": 1}, "mean"),
        ("start='draw'", {}, "draw"),
    ],
)
def test_what_needs_a_start_distribution_says_so(distribution, needy, choices, start):
    check_choices(distribution, latents=None, start=start, choices=choices)
    with pytest.raises(
        ValueError, match=f"{needy} must come with a start distribution, got a pipeline without"
    ):
        check_choices(None, latents=None, start=start, choices=choices)
