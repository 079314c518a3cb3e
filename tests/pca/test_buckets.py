"""Start distributions of several sizes, and classes without pictures at some of them."""

import json

import pytest
import torch
from onbrand.pca import StartDistribution

NAMES = ["mug", "shoe"]


def pictures(height, width, n=12, channels=2):
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(height * width))


def fit(height, width, *, ids=None, channels=2, **options):
    x = pictures(height, width, channels=channels)
    ids = torch.arange(len(x)) % 2 if ids is None else torch.tensor(ids)
    return StartDistribution.fit(x, ids, **{"class_names": NAMES, "components": 2, **options})


@pytest.fixture
def bucketed():
    """4x4 with buckets 4x6, of mugs alone, and 6x4."""
    distribution = fit(4, 4)
    distribution.add_bucket(fit(4, 6, ids=[0] * 12, allow_empty=True))
    distribution.add_bucket(fit(6, 4))
    return distribution


def test_each_size_has_its_own_statistics(bucketed):
    assert bucketed.sizes == [(4, 4), (4, 6), (6, 4)]
    assert bucketed.config.bucket_sizes == [[4, 6], [6, 4]]
    assert bucketed.at(4, 4) is bucketed
    torch.testing.assert_close(bucketed.at(4, 6).mean[0], pictures(4, 6).mean(0))
    torch.testing.assert_close(bucketed.at(6, 4).mean[1], pictures(6, 4)[1::2].mean(0))


def test_another_size_is_refused_with_the_sizes_there_are(bucketed):
    with pytest.raises(ValueError, match="latent size must be one of 4x4, 4x6, 6x4, got 6x6"):
        bucketed.at(6, 6)
    with pytest.raises(ValueError, match="latent size must be one of 4x4, got 6x6"):
        fit(4, 4).at(6, 6)
    with pytest.raises(ValueError, match="latent size must be one of 4x4, 4x6, 6x4, got 6x6"):
        bucketed.sample(torch.tensor([0]), size=(6, 6))
    match = r"latents must be shaped \(B, 2, 4, 4\) or \(B, 2, 4, 6\) or \(B, 2, 6, 4\), got \(1, 2, 6, 6\)"
    with pytest.raises(ValueError, match=match):
        bucketed.project(torch.zeros(1, 2, 6, 6), torch.tensor([0]))


@pytest.mark.parametrize("size", [(4, 4), (6, 4)])
def test_projection_and_draws_are_those_of_the_size(bucketed, size):
    x, ids = pictures(*size), torch.arange(12) % 2
    alone = fit(*size)
    assert torch.equal(bucketed.project(x, ids), alone.project(x, ids))
    drawn = bucketed.sample(ids, torch.Generator().manual_seed(1), size=size)
    assert torch.equal(drawn, alone.sample(ids, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("match", "height", "options"),
    [
        ("bucket must have another size than 4x4, got the same", 4, {}),
        (r"bucket class_names must be \['mug', 'shoe'\] as at 4x4, got \['cup', 'boot'\]", 6,
         {"class_names": ["cup", "boot"]}),
        ("bucket channels must be 2 as at 4x4, got 3", 6, {"channels": 3}),
        ("bucket num_components must be 2 as at 4x4, got 1", 6, {"components": 1}),
        ("bucket num_train_timesteps must be 1000 as at 4x4, got 500", 6,
         {"num_train_timesteps": 500, "offset_from": 950}),
        ("bucket offset_from must be 950 as at 4x4, got 940", 6, {"offset_from": 940}),
    ],
)  # fmt: skip
def test_a_bucket_that_does_not_belong_is_refused(match, height, options):
    with pytest.raises(ValueError, match=match):
        fit(4, 4).add_bucket(fit(height, 4, **options))


def test_a_bucket_is_replaced_by_one_of_its_size(bucketed):
    other = fit(6, 4, ids=[0, 0, 0, 1, 1, 1] * 2)
    bucketed.add_bucket(other)
    assert bucketed.at(6, 4) is other
    assert bucketed.config.bucket_sizes == [[4, 6], [6, 4]]


def test_buckets_move_along_and_stay_float32(bucketed):
    mean = bucketed.at(4, 6).mean.clone()
    bucketed.half()
    assert torch.equal(bucketed.at(4, 6).mean, mean)
    assert bucketed.to("meta").at(4, 6).mean.device.type == "meta"
    assert set(bucketed.state_dict()) == {"mean", "components", "variances"}


@pytest.mark.parametrize("subfolder", [None, "start_distribution"])
def test_buckets_through_disk(bucketed, tmp_path, subfolder):
    folder = tmp_path / (subfolder or "")
    bucketed.save_pretrained(folder)
    loaded = StartDistribution.from_pretrained(tmp_path, subfolder=subfolder)
    assert loaded.sizes == bucketed.sizes
    for size in loaded.sizes:
        ours, theirs = bucketed.at(*size), loaded.at(*size)
        for name in ("mean", "components", "variances"):
            assert torch.equal(getattr(theirs, name), getattr(ours, name))
        assert theirs.config.counts == ours.config.counts
    assert {path.name for path in (folder / "4x6").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    assert StartDistribution.from_pretrained(folder / "4x6").sizes == [(4, 6)]


def test_a_class_without_pictures_is_refused_at_that_size_alone(bucketed):
    assert bucketed.at(4, 6).config.counts == [12, 0]
    assert bucketed.class_id("shoe") == bucketed.class_id("shoe", size=(6, 4)) == 1
    assert bucketed.class_id("mug", size=(4, 6)) == 0
    with pytest.raises(
        ValueError, match=r"pictures at size 4x6, got 'shoe' with none \(it has them at 4x4, 6x4\)"
    ):
        bucketed.class_id("shoe", size=(4, 6))
    with pytest.raises(
        ValueError, match=r"pictures at size 4x6, got 'shoe' with none \(it has them at no size\)"
    ):
        bucketed.at(4, 6).class_id("shoe")


def test_readers_of_format_1_are_stopped_only_where_they_would_be_misled(bucketed, tmp_path):
    """They would take the zeros of a class without pictures for its mean."""
    bucketed.save_pretrained(tmp_path)
    versions = [
        json.loads((tmp_path / folder / "config.json").read_text())["format_version"]
        for folder in ("", "4x6", "6x4")
    ]
    assert versions == [1, 2, 1]
