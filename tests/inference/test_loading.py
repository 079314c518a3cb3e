"""Folders, single files and hub ids: saved by us, read by us and by plain diffusers."""

import json
import logging
import shutil
import warnings

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from onbrand.export.single_file import save_single_file
from onbrand.inference import (
    OffsetStableDiffusionPipeline,
    OffsetStableDiffusionXLPipeline,
    load_pipeline,
)
from onbrand.inference.load import to_draw
from onbrand.pca import StartDistribution, vae_fingerprint
from safetensors.torch import save_file


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe, **call):
    call = {
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(0),
    } | call
    return quiet(pipe)("a mug", **call).images


@pytest.fixture(scope="module")
def distribution(tiny):
    x = torch.randn(6, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    fingerprint = vae_fingerprint(tiny.make_vae())
    ids = torch.zeros(6, dtype=torch.long)
    return StartDistribution.fit(x, ids, class_names=["mug"], components=1, vae_fingerprint=fingerprint)


@pytest.fixture(scope="module")
def checkpoint(tiny, distribution, tmp_path_factory):
    """A saved folder with a start distribution; read-only."""
    folder = tmp_path_factory.mktemp("checkpoint")
    OffsetStableDiffusionPipeline(**tiny.make_components(), start_distribution=distribution).save_pretrained(
        folder
    )
    return folder


pytestmark = pytest.mark.filterwarnings("ignore:the sampler's first timestep")


def test_layout(checkpoint):
    index = json.loads((checkpoint / "model_index.json").read_text())
    assert index["start_distribution"] == ["start_distribution", "StartDistribution"]
    files = {path.name for path in (checkpoint / "start_distribution").iterdir()}
    assert files == {"config.json", "diffusion_pytorch_model.safetensors", "start_distribution.py"}


def test_round_trip_gives_the_same_pictures(checkpoint, tiny, distribution, tmp_path):
    built = OffsetStableDiffusionPipeline(**tiny.make_components(), start_distribution=distribution)
    loaded = load_pipeline(checkpoint)
    assert isinstance(loaded, OffsetStableDiffusionPipeline)
    assert np.array_equal(picture(loaded), picture(built))
    loaded.save_pretrained(tmp_path)
    assert np.array_equal(picture(load_pipeline(tmp_path)), picture(built))


def test_precision_of_the_models_only(checkpoint):
    loaded = load_pipeline(checkpoint, torch_dtype=torch.bfloat16)
    assert loaded.dtype == loaded.unet.dtype == loaded.vae.dtype == torch.bfloat16
    assert loaded.start_distribution.mean.dtype == torch.float32


def test_plain_diffusers_reads_our_folder(checkpoint):
    plain = StableDiffusionPipeline.from_pretrained(checkpoint)
    ours = load_pipeline(checkpoint)
    assert np.array_equal(picture(plain), picture(ours, start="none"))


def test_a_folder_without_start_distribution_is_plain_and_says_so_once(tiny_base, caplog):
    with caplog.at_level(logging.WARNING, logger="onbrand"):
        loaded = load_pipeline(tiny_base)
        pictures = picture(loaded)
    assert loaded.start_distribution is None
    assert [r.message for r in caplog.records if "no start distribution" in r.message] == [
        f"{tiny_base} has no start distribution: it samples as a plain pipeline"
    ]
    assert np.array_equal(pictures, picture(StableDiffusionPipeline.from_pretrained(tiny_base)))


def test_a_start_distribution_can_be_attached_or_left_out_at_loading(tiny_base, checkpoint, distribution):
    attached = OffsetStableDiffusionPipeline.from_pretrained(tiny_base, start_distribution=distribution)
    assert attached.start_distribution is distribution
    assert (
        OffsetStableDiffusionPipeline.from_pretrained(checkpoint, start_distribution=None).start_distribution
        is None
    )


def test_a_vae_swapped_in_the_folder_is_noticed(checkpoint, tiny, tmp_path):
    swapped = shutil.copytree(checkpoint, tmp_path / "swapped")
    tiny.make_vae(seed=1).save_pretrained(swapped / "vae")
    with pytest.raises(ValueError, match="VAE must be the one the start distribution was fitted with"):
        load_pipeline(swapped)


@pytest.fixture
def single_file(tiny, tmp_path, monkeypatch):
    """Writes a file with these tensor names and has diffusers read these components out of it."""

    def write(parts, *names, suffix=".safetensors"):
        file = tmp_path / f"model{suffix}"
        if suffix == ".safetensors":
            save_file({name: torch.zeros(1) for name in names}, file)
        else:
            torch.save({name: torch.zeros(1) for name in names}, file)
        monkeypatch.setattr(
            "diffusers.loaders.single_file.load_single_file_sub_model", lambda *, name, **kwargs: parts[name]
        )
        return file

    return write


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_is_read_through_diffusers(tiny, tiny_base, single_file, suffix):
    parts = tiny.make_components()
    loaded = load_pipeline(single_file(parts, "model.weight", suffix=suffix), config=tiny_base)
    assert type(loaded) is OffsetStableDiffusionPipeline
    assert loaded.unet is parts["unet"]
    assert loaded.start_distribution is None


def test_the_config_tells_the_kind_of_a_single_file(tiny, single_file, tmp_path):
    parts = tiny.make_xl_components()
    file = single_file(parts, "model.weight")
    loaded = load_pipeline(file, config=tiny.save_xl_base(tmp_path / "xl"))
    assert type(loaded) is OffsetStableDiffusionXLPipeline
    assert loaded.text_encoder_2 is parts["text_encoder_2"]


def test_the_config_of_a_single_file_may_have_a_start_distribution(tiny, single_file, checkpoint):
    loaded = load_pipeline(single_file(tiny.make_components(), "model.weight"), config=checkpoint)
    assert loaded.start_distribution is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("conditioner.embedders.0.weight", OffsetStableDiffusionXLPipeline),
        ("cond_stage_model.weight", OffsetStableDiffusionPipeline),
    ],
)
def test_the_tensors_of_a_single_file_tell_its_kind_without_a_config(single_file, monkeypatch, name, kind):
    read = []
    monkeypatch.setattr(kind, "from_single_file", lambda path, **options: read.append((path, options)))
    file = single_file({}, "model.weight", name)
    load_pipeline(file, torch_dtype=torch.float16)
    assert read == [(str(file), {"torch_dtype": torch.float16, "start_distribution": None})]


def change_index(folder, target, **changes):
    shutil.copytree(folder, target)
    index = json.loads((target / "model_index.json").read_text())
    (target / "model_index.json").write_text(json.dumps(index | changes))
    return target


def test_bad_paths_are_refused(tiny_base, tmp_path):
    for missing in (tmp_path / "missing", "./missing", "a/b/c"):
        with pytest.raises(
            ValueError, match="model must be an existing folder, a single file or a hub id, got"
        ):
            load_pipeline(missing)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"model file must end in .safetensors or .ckpt, got .*notes.txt"):
        load_pipeline(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"model folder must hold model_index.json, got .* without it"):
        load_pipeline(tmp_path)


def test_an_unreachable_hub_id_is_refused():
    with pytest.raises(
        ValueError, match="existing folder, a single file or a hub id, got 'nobody/nothing': "
    ):
        load_pipeline("nobody/nothing")


def test_a_folder_without_a_vae_is_refused(tiny_base, tmp_path):
    no_entry = change_index(tiny_base, tmp_path / "entry", vae=[None, None])
    no_folder = change_index(tiny_base, tmp_path / "folder")
    shutil.rmtree(no_folder / "vae")
    for folder in (no_entry, no_folder):
        with pytest.raises(ValueError, match=r"model folder must hold a VAE, got .* without one"):
            load_pipeline(folder)


def test_another_kind_of_pipeline_is_refused(tiny_base, tmp_path):
    flux = {"unet": None, "transformer": ["diffusers", "FluxTransformer2DModel"]}
    folder = change_index(tiny_base, tmp_path / "flux", **flux, _class_name="FluxPipeline")
    match = "must be of Stable Diffusion 1, 2 or XL, with or without ControlNet, got FluxPipeline in"
    with pytest.raises(ValueError, match=match):
        load_pipeline(folder)


def test_a_single_file_takes_the_start_distribution_beside_it(checkpoint, distribution, tmp_path):
    save_single_file(load_pipeline(checkpoint), tmp_path / "model.safetensors")
    shutil.copytree(checkpoint / "start_distribution", tmp_path / "start_distribution")
    loaded = load_pipeline(tmp_path / "model.safetensors", config=checkpoint)
    assert torch.equal(loaded.start_distribution.mean, distribution.mean)
    assert np.array_equal(picture(loaded), picture(load_pipeline(checkpoint)))
    plain = load_pipeline(tmp_path / "model.safetensors", config=checkpoint, plain=True)
    assert plain.start_distribution is None


def test_a_damaged_single_file_is_named(checkpoint, tmp_path):
    file = tmp_path / "model.safetensors"
    save_single_file(load_pipeline(checkpoint), file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"single file .*model.safetensors must be readable, got"):
        load_pipeline(file, config=checkpoint)
    with pytest.raises(ValueError, match=r"must be readable, and its architecture be given as config or"):
        load_pipeline(file)


def test_half_precision_folders_load_in_one_dtype(tiny, distribution, tmp_path):
    """transformers would go by its config, diffusers by float32."""
    pipe = OffsetStableDiffusionPipeline(**tiny.make_components(), start_distribution=distribution)
    pipe.to(torch.float16).save_pretrained(tmp_path)
    for loaded in (load_pipeline(tmp_path), StableDiffusionPipeline.from_pretrained(tmp_path)):
        assert {loaded.unet.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.float32}
    half = load_pipeline(tmp_path, torch_dtype=torch.float16)
    assert {half.unet.dtype, half.vae.dtype, half.text_encoder.dtype} == {torch.float16}


def test_half_precision_folders_of_diffusers_load_in_one_dtype(tiny, tmp_path):
    StableDiffusionPipeline(**tiny.make_components()).to(torch.float16).save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.float32}


def test_loading_does_not_warn_of_its_own_arguments(tiny_base):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_pipeline(tiny_base)
    assert not [warning for warning in seen if "torch_dtype" in str(warning.message)]


def test_no_path_of_the_machine_that_saved_it_is_in_a_folder(checkpoint, tmp_path):
    load_pipeline(checkpoint).save_pretrained(tmp_path)
    for file in (tmp_path / "model_index.json", *tmp_path.glob("*/config.json")):
        assert "_name_or_path" not in json.loads(file.read_text()), file


def test_a_pipeline_ready_to_draw_draws_the_same(checkpoint):
    plain, ready = load_pipeline(checkpoint), to_draw(load_pipeline(checkpoint), "cpu")
    for convolution in (ready.unet.conv_in, ready.vae.decoder.conv_in):
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(picture(ready) - picture(plain)).max() < 1e-3
