"""Draws, projections, dtype, lookups and files of the start distribution."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.pca import DEFAULT_SAMPLERS, StartDistribution
from safetensors.torch import save_file

SHAPE = (2, 4, 4)
SOURCE = Path(sys.modules[StartDistribution.__module__].__file__)
PREFIXES = {"mug": "a mug", "shoe": "A shoe", "travel mug": "a mug to go", "plain": ""}


def fit(components=3, n=30, classes=("mug", "shoe"), **config):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, *SHAPE, generator=g) * torch.linspace(2, 0.5, 32).view(SHAPE) + 1
    ids = torch.arange(n) % len(classes)
    return StartDistribution.fit(x, ids, class_names=classes, components=components, **config), x, ids


def test_documented_shapes_and_config():
    d, x, ids = fit(skip_interval=80, samplers=DEFAULT_SAMPLERS, image_transform={"fit": "pad"})
    assert d.mean.shape == (2, *SHAPE)
    assert d.components.shape == (2, 3, *SHAPE)
    assert d.variances.shape == (2, 3)
    assert d.class_names == ["mug", "shoe"]
    assert d.latent_shape == SHAPE
    assert d.offset_from == 920
    assert d.config.counts == [15, 15]
    assert d.config.samplers[0] == ["DDIMScheduler", 20, None]
    assert d.config.image_transform == {"fit": "pad"}
    torch.testing.assert_close(d.mean[1], x[ids == 1].mean(0))
    assert not list(d.parameters())


def test_projection_closed_form():
    d, x, ids = fit()
    basis = d.components.flatten(2)[ids]
    mean = d.mean.flatten(1)[ids]
    centred = x.flatten(1) - mean
    expected = mean + (basis.mT @ (basis @ centred[..., None]))[..., 0]
    torch.testing.assert_close(d.project(x, ids).flatten(1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["pca", "pooled", "text"])
def test_autocast_leaves_starts_in_float32(family):
    told = {"text_embeds": torch.randn(60, 5)} if family == "text" else {}
    d, x, ids = fit(n=60, family=family, **told)
    some = {"text_embeds": told["text_embeds"][:8]} if told else {}
    x, ids = x[:8], ids[:8]

    def starts():
        drawn = d.sample(ids, torch.Generator().manual_seed(0), **some)
        return [d.project(x, ids), d.expected(ids, **some), drawn]

    expected = starts()
    with torch.autocast("cpu", torch.bfloat16):
        for found, exact in zip(starts(), expected, strict=True):
            assert torch.equal(found, exact)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), components=st.sampled_from([0, 1, 5]))
def test_projection_is_idempotent_and_leaves_draws_alone(seed, components):
    d, _, _ = fit(components)
    g = torch.Generator().manual_seed(seed)
    ids = torch.tensor([0, 1, 1])
    drawn = d.sample(ids, g)
    torch.testing.assert_close(d.project(drawn, ids), drawn, atol=1e-5, rtol=1e-5)
    once = d.project(torch.randn(3, *SHAPE, generator=g), ids)
    torch.testing.assert_close(d.project(once, ids), once, atol=1e-5, rtol=1e-5)


def test_all_components_reproduce_the_pictures():
    d, x, ids = fit(components=9, n=20)
    torch.testing.assert_close(d.project(x, ids), x, atol=1e-5, rtol=1e-5)


def test_no_components_is_the_class_mean():
    d, x, ids = fit(components=0)
    assert torch.equal(d.project(x, ids), d.mean[ids])
    assert torch.equal(d.sample(ids), d.mean[ids])


def test_draws_have_the_stored_mean_and_variances():
    d, _, _ = fit()
    ids = torch.ones(20_000, dtype=torch.long)
    drawn = d.sample(ids, torch.Generator().manual_seed(0))
    scores = (drawn - d.mean[1]).flatten(1) @ d.components[1].flatten(1).T
    torch.testing.assert_close(scores.var(0) / d.variances[1], torch.ones(3), atol=0.05, rtol=0)
    assert (scores.mean(0).abs() < 4 * (d.variances[1] / 20_000).sqrt()).all()


def test_draws_follow_their_generator():
    d, _, _ = fit()
    ids = torch.tensor([0, 1, 0])
    one, same, other = (d.sample(ids, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "cast",
    [
        lambda d: d.to(torch.float16),
        lambda d: d.half(),
        lambda d: d.bfloat16(),
        lambda d: d.double(),
        lambda d: d.to("cpu", torch.bfloat16),
        lambda d: torch.nn.ModuleDict({"d": d}).half()["d"],
    ],
)
def test_statistics_stay_float32_and_unrounded(cast):
    d, _, _ = fit()
    mean, components, variances = d.mean.clone(), d.components.clone(), d.variances.clone()
    d = cast(d)
    assert d.dtype == torch.float32
    assert torch.equal(d.mean, mean)
    assert torch.equal(d.components, components)
    assert torch.equal(d.variances, variances)
    assert d.project(mean.half(), torch.tensor([0, 1])).dtype == torch.float32


def test_a_move_to_another_device_is_followed():
    assert fit()[0].to("meta", torch.float16).mean.device.type == "meta"


@pytest.mark.parametrize("components", [0, 3])
def test_saved_and_loaded_alike_whatever_dtype_is_asked_for(tmp_path, components):
    d, _, _ = fit(components, caption_prefixes={"mug": "a mug"}, vae_fingerprint={"latents": "1 2"})
    d.save_pretrained(tmp_path)
    loaded = StartDistribution.from_pretrained(tmp_path, torch_dtype=torch.float16)
    for name in ("mean", "components", "variances"):
        assert torch.equal(getattr(loaded, name), getattr(d, name))
        assert getattr(loaded, name).dtype == torch.float32
    ours, theirs = ({k: v for k, v in c.config.items() if k[0] != "_"} for c in (d, loaded))
    assert ours == theirs
    assert not list(tmp_path.glob("*.bin"))


def test_a_saved_folder_loads_with_its_own_copy_of_the_class(tmp_path):
    d, x, ids = fit()
    d.save_pretrained(tmp_path)
    source = tmp_path / "start_distribution.py"
    spec = importlib.util.spec_from_file_location("travelled", source)
    travelled = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(travelled)
    copy = travelled.StartDistribution.from_pretrained(tmp_path)
    assert type(copy) is not StartDistribution
    assert torch.equal(copy.project(x, ids), d.project(x, ids))
    copy.save_pretrained(tmp_path)
    assert source.read_text() == SOURCE.read_text()


def test_the_travelling_file_imports_nothing_of_ours():
    assert "from ." not in SOURCE.read_text()
    assert "from onbrand" not in SOURCE.read_text()


def test_a_newer_format_is_refused(tmp_path):
    fit()[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format_version": 4}))
    with pytest.raises(ValueError, match="format_version must be at most 3 here, got 4"):
        StartDistribution.from_pretrained(tmp_path)


def test_older_formats_are_read(tmp_path):
    """Version 1 knew neither families nor buckets."""
    d, x, ids = fit()
    d.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format_version"] == 1
    for key in ("family", "text_width", "text_fingerprint", "bucket_sizes"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = StartDistribution.from_pretrained(tmp_path)
    assert loaded.family == "pca"
    assert torch.equal(loaded.project(x, ids), d.project(x, ids))


def test_a_damaged_file_is_refused_by_name(tmp_path):
    fit()[0].save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    for rest in (whole[: len(whole) // 2], whole[:20], b""):
        file.write_bytes(rest)
        with pytest.raises(
            ValueError, match=rf"start distribution in {tmp_path} must be readable, got Unable"
        ):
            StartDistribution.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"must be readable, got Error no file named .*safetensors"):
        StartDistribution.from_pretrained(tmp_path)
    save_file({"mean": torch.zeros(2, 2, 4, 4), "other": torch.zeros(1)}, file)
    with pytest.raises(
        ValueError, match=r"must hold the tensors its config says, got others: .*components.*other"
    ):
        StartDistribution.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a mug with stripes", "mug"),
        ("A MUG to go, blue", "travel mug"),
        ("  a shoe", "shoe"),
        ("a mugshot", None),
        ("the mug", None),
        ("", None),
    ],
)
def test_class_by_longest_caption_prefix(caption, expected):
    d, _, _ = fit(components=0, classes=tuple(PREFIXES), caption_prefixes=PREFIXES)
    assert d.class_of_caption(caption) == expected


def test_a_prefix_of_two_classes_tells_neither():
    d, _, _ = fit(components=0, caption_prefixes={"mug": "a photo", "shoe": "a photo"})
    assert d.class_of_caption("a photo of a mug") is None


def test_classes_by_name():
    d, _, _ = fit()
    assert [d.class_id(name) for name in d.class_names] == [0, 1]
    with pytest.raises(ValueError, match=r"must be one of mug, shoe, got 'shoes' \(did you mean 'shoe'\?\)"):
        d.class_id("shoes")
    with pytest.raises(ValueError, match=r"must be one of mug, shoe, got 'xyz'$"):
        d.class_id("xyz")


def test_bad_latents_ids_and_names_are_refused():
    d, x, ids = fit()
    with pytest.raises(ValueError, match=r"latents must be shaped \(B, 2, 4, 4\), got \(30, 2, 4, 2\)"):
        d.project(x[..., :2], ids)
    with pytest.raises(ValueError, match="class_ids must be one id for each of 30 latents, got 1"):
        d.project(x, ids[:1])
    for bad in (2, -1):
        with pytest.raises(ValueError, match=rf"class_ids must be in \[0, 2\), got {bad}"):
            d.sample(torch.tensor([0, bad]))
        with pytest.raises(ValueError, match=rf"class_ids must be in \[0, 2\), got {bad}"):
            d.project(x[:2], torch.tensor([bad, 1]))
    for names in ([], ["mug", "mug"]):
        with pytest.raises(ValueError, match="class_names must be distinct and at least one, got"):
            StartDistribution(class_names=names, latent_shape=[4, 8, 8])
