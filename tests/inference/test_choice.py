"""Which class and which start each picture gets."""

import copy

import pytest
import torch
from onbrand.inference.choice import StartChoice, check_choice, choose_start, resolve_classes
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


def start_of(distribution, prompts, num_images, *, generator=None, size=SHAPE[1:], **choice):
    return choose_start(
        distribution, prompts, num_images, StartChoice(**choice), size=size, generator=generator
    )


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
    x_start = start_of(distribution, ["a shoe", "a mug"], 2)
    assert torch.equal(x_start, distribution.mean[[1, 1, 0, 0]])


def test_draws_are_independent_within_a_gallery_and_follow_the_generators(distribution):
    drawn = start_of(distribution, ["a mug"], 3, start="draw", generator=seeded())
    assert torch.equal(drawn, distribution.sample(torch.zeros(3).long(), seeded()))
    assert len({tuple(x.flatten().tolist()) for x in drawn}) == 3
    listed = start_of(distribution, ["a mug"], 3, start="draw", generator=[seeded(s) for s in (3, 4, 5)])
    alone = start_of(distribution, ["a mug"], 1, start="draw", generator=[seeded(4)])
    torch.testing.assert_close(listed[1:2], alone)


def test_pure_noise_has_no_start_and_needs_no_class(distribution):
    assert start_of(distribution, ["a hat"], 2, start="none") is None
    assert start_of(None, ["a hat"], 2) is None


def test_given_latents_as_they_are_or_projected(distribution):
    x = torch.randn(4, *SHAPE, generator=seeded())
    prompts = ["a mug", "a shoe"]
    assert torch.equal(start_of(distribution, prompts, 2, x_start=x), x)
    assert torch.equal(start_of(None, prompts, 2, x_start=x[0]), x[[0, 0, 0, 0]])
    assert torch.equal(start_of(None, prompts, 2, x_start=x[:2].half()), x[[0, 0, 1, 1]].half().float())
    projected = start_of(distribution, prompts, 2, x_start=x[:1], project_start=True)
    torch.testing.assert_close(projected, distribution.project(x[[0] * 4], torch.tensor([0, 0, 1, 1])))
    with pytest.raises(ValueError, match="one for each of 2 prompts or one for each of 4 pictures, got 3"):
        start_of(distribution, prompts, 2, x_start=x[:3])


def test_a_bucket_of_the_size_is_asked(distribution):
    wide = StartDistribution.fit(
        torch.randn(9, 4, 8, 12, generator=seeded()), torch.zeros(9).long(), components=2,
        class_names=["mug", "shoe"], allow_empty=True,
    )  # fmt: skip
    both = copy.deepcopy(distribution)
    both.add_bucket(wide)
    assert torch.equal(start_of(both, ["a mug"], 1, class_name="mug", size=(8, 12)), wide.mean[:1])
    drawn = start_of(both, ["a mug"], 2, size=(8, 12), start="draw", generator=seeded())
    assert torch.equal(drawn, wide.sample(torch.tensor([0, 0]), seeded()))
    listed = start_of(both, ["a mug"], 2, size=(8, 12), start="draw", generator=[seeded(), seeded(1)])
    torch.testing.assert_close(listed[1:], wide.sample(torch.tensor([0]), seeded(1)))
    assert torch.equal(start_of(both, ["a mug"], 1), distribution.mean[:1])
    with pytest.raises(
        ValueError, match=r"must have pictures at size 8x12, got 'shoe' with none \(it has them at 8x8\)"
    ):
        start_of(both, ["a shoe"], 1, size=(8, 12))


@pytest.mark.parametrize(
    ("match", "choice", "latents"),
    [
        ("start must be one of mean, draw, none, got 'mode'", {"start": "mode"}, None),
        ("latents must be the only start, got noise beside", {"noise": 1}, torch.zeros(1)),
        ("x_start must not be given beside start_image", {"x_start": 1, "start_image": 1}, None),
        ("project_start must come with start_image or x_start, got neither", {"project_start": True}, None),
    ],
)
def test_contradictions_are_refused(distribution, match, choice, latents):
    with pytest.raises(ValueError, match=match):
        check_choice(distribution, StartChoice(**choice), latents=latents)


@pytest.mark.parametrize(
    ("needy", "choice"),
    [
        ("class_name", {"class_name": "mug"}),
        ("project_start", {"project_start": True, "x_start": 1}),
        ("start='draw'", {"start": "draw"}),
    ],
)
def test_what_needs_a_start_distribution_says_so(distribution, needy, choice):
    check_choice(distribution, StartChoice(**choice), latents=None)
    with pytest.raises(
        ValueError, match=f"{needy} must come with a start distribution, got a pipeline without"
    ):
        check_choice(None, StartChoice(**choice), latents=None)
