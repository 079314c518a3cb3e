"""ComfyUI starts, read back as ComfyUI reads them: its rules are written out here, apart from our code.

Read in ComfyUI's nodes.py (LoadLatent), comfy/latent_formats.py (SD15, SDXL), comfy/model_sampling.py (EPS)
and comfy/samplers.py (the schedulers, max_denoise).
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from onbrand.export.comfyui import FIRST_TIMESTEP, comfyui_workflow, save_comfyui_starts
from onbrand.inference import (
    OffsetStableDiffusionControlNetPipeline,
    OffsetStableDiffusionPipeline,
    OffsetStableDiffusionXLPipeline,
    start_latents,
)
from onbrand.pca import StartDistribution
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

CLASSES = ["mug", "shoe"]
SCHEDULERS = {"ddim_uniform", "normal", "simple", "sgm_uniform", "karras", "exponential"}


def load_latent(file):
    """What the node Load Latent hands on."""
    tensors = load_file(file)
    return tensors["latent_tensor"].float() * (1 if "latent_format_version_0" in tensors else 1 / 0.18215)


def sigmas_of_comfyui():
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    kept = np.cumprod(1 - betas)
    return np.sqrt((1 - kept) / kept)


def first_sigma(scheduler, steps=20):
    sigmas = sigmas_of_comfyui()
    return sigmas[1 :: 1000 // steps][-1] if scheduler == "ddim_uniform" else sigmas[-1]


def first_seen_in_comfyui(latents, noise, *, scale, scheduler):
    """What the network sees first at denoise 1.0: noise added by noise_scaling, then calculate_input."""
    sigma = float(first_sigma(scheduler))
    at_most = math.isclose(sigma, sigmas_of_comfyui()[-1], rel_tol=1e-5)
    noisy = latents * scale + noise * (math.sqrt(1 + sigma**2) if at_most else sigma)
    return noisy / math.sqrt(sigma**2 + 1)


def fit(shape, *, names=CLASSES, classes=None, seed=0, **options):
    x = torch.randn(24, *shape, generator=torch.Generator().manual_seed(seed)) + 1
    ids = torch.arange(24) % (classes or len(names))
    return StartDistribution.fit(x, ids, class_names=names, offset_from=941, **options)


@pytest.fixture(scope="module")
def components(tiny):
    return tiny.make_components()


@pytest.fixture
def pipe_of(tiny, components):
    def make(distribution=None, **changes):
        start = distribution or fit(tiny.LATENT_SHAPE)
        return OffsetStableDiffusionPipeline(**components | changes, start_distribution=start)

    return make


def test_a_file_is_the_class_mean_in_units_of_the_vae(tiny, pipe_of, tmp_path):
    pipe = pipe_of(vae=tiny.make_vae(scaling_factor=0.5, shift_factor=0.25))
    save_comfyui_starts(pipe, tmp_path)
    tensors = load_file(tmp_path / "shoe.latent")
    assert set(tensors) == {"latent_tensor", "latent_format_version_0"}
    assert tensors["latent_tensor"].shape == (1, *tiny.LATENT_SHAPE)
    assert tensors["latent_tensor"].dtype == torch.float32
    assert tensors["latent_format_version_0"].numel() == 0
    torch.testing.assert_close(tensors["latent_tensor"][0], pipe.start_distribution.mean[1] / 0.5 + 0.25)


def test_the_picture_is_what_the_vae_decodes(pipe_of, tmp_path):
    pipe = pipe_of()
    save_comfyui_starts(pipe, tmp_path)
    with torch.no_grad():
        decoded = pipe.vae.decode(load_latent(tmp_path / "mug.latent")).sample
    expected = VaeImageProcessor().postprocess(decoded)[0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mug.png")), np.asarray(expected))


@pytest.mark.parametrize("is_xl", [False, True])
def test_ddim_uniform_begins_where_ddim_does_in_onbrand(tiny, pipe_of, tmp_path, is_xl):
    scale = 0.13025 if is_xl else 0.18215
    if is_xl:
        parts = tiny.make_xl_components() | {"vae": tiny.make_vae(scaling_factor=scale)}
        pipe = OffsetStableDiffusionXLPipeline(**parts, start_distribution=fit(tiny.LATENT_SHAPE))
    else:
        pipe = pipe_of()
    save_comfyui_starts(pipe, tmp_path)
    assert "## This model" not in (tmp_path / "README.md").read_text()
    noise = torch.randn(1, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(1))
    seen = first_seen_in_comfyui(
        load_latent(tmp_path / "mug.latent"), noise, scale=scale, scheduler="ddim_uniform"
    )
    ours = start_latents(tiny.make_scheduler(), 20, pipe.start_distribution.mean[0], noise)
    torch.testing.assert_close(seen, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_other_schedulers_begin_with_a_little_more_noise(tiny, pipe_of, tmp_path, prediction_type):
    plain = tiny.make_scheduler(prediction_type=prediction_type)
    pipe = pipe_of(scheduler=plain)
    save_comfyui_starts(pipe, tmp_path)
    noise = torch.randn(1, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(1))
    latents = load_latent(tmp_path / "mug.latent")
    seen = first_seen_in_comfyui(latents, noise, scale=0.18215, scheduler="normal")
    euler = EulerDiscreteScheduler.from_config(plain.config, timestep_spacing="linspace")
    handed = start_latents(euler, 20, pipe.start_distribution.mean[0], noise)
    euler.set_timesteps(20)
    assert euler.timesteps[0] == 999
    ours = euler.scale_model_input(handed * euler.init_noise_sigma, euler.timesteps[0])
    a = float(plain.alphas_cumprod[999])
    x_start = math.sqrt(a) * pipe.start_distribution.mean[0]
    torch.testing.assert_close(seen - x_start, (ours - x_start) / math.sqrt(1 - a), atol=1e-5, rtol=0)
    assert 1 / math.sqrt(1 - a) == pytest.approx(1.0023, abs=1e-4)


def test_a_draw_is_the_distributions_own_whatever_other_classes_there_are(tiny, pipe_of, tmp_path):
    distribution = fit(tiny.LATENT_SHAPE, components=2)
    written = save_comfyui_starts(pipe_of(distribution), tmp_path, draws=2, seed=7)
    stems = [f"{name}{what}" for name in CLASSES for what in ("", "_draw1", "_draw2")]
    assert [path.name for path in written[:-2:2]] == [f"{stem}.latent" for stem in stems]
    assert [path.name for path in written[1:-2:2]] == [f"{stem}.png" for stem in stems]
    assert [path.name for path in written[-2:]] == ["workflow.json", "README.md"]
    assert sorted(written) == sorted(tmp_path.iterdir())
    drawn = distribution.sample(torch.tensor([1]), torch.Generator().manual_seed(8))
    torch.testing.assert_close(load_latent(tmp_path / "shoe_draw2.latent") * 0.18215, drawn)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0),
        ({"components": 1}, 3),
        ({"family": "diagonal"}, 3),
        ({"family": "pooled"}, 3),
        ({"family": "dct", "band": 2}, 3),
    ],
)
def test_there_are_draws_where_there_is_something_to_draw(tiny, pipe_of, tmp_path, options, expected):
    save_comfyui_starts(pipe_of(fit(tiny.LATENT_SHAPE, **options)), tmp_path)
    assert len(list(tmp_path.glob("mug_draw*.latent"))) == expected


def test_of_a_start_that_depends_on_text_the_class_mean_is_written(tiny, components, tmp_path):
    text = torch.randn(24, 16, generator=torch.Generator().manual_seed(2))
    start = fit(tiny.LATENT_SHAPE, family="text", components=1, text_embeds=text)
    pipe = OffsetStableDiffusionPipeline(**components)
    pipe.register_modules(start_distribution=start)
    save_comfyui_starts(pipe, tmp_path)
    assert len(list(tmp_path.glob("*.latent"))) == 2
    torch.testing.assert_close(load_latent(tmp_path / "mug.latent")[0] * 0.18215, start.mean[0])
    assert "Its starts depend on the prompt" in (tmp_path / "README.md").read_text()


def test_every_size_has_its_file_and_a_class_without_pictures_none(tiny, pipe_of, tmp_path):
    wide = (4, 6, 10)
    distribution = fit(tiny.LATENT_SHAPE)
    distribution.add_bucket(fit(wide, classes=1, allow_empty=True))
    save_comfyui_starts(pipe_of(distribution), tmp_path)
    names = sorted(path.stem for path in tmp_path.glob("*.latent"))
    assert names == ["mug_24x40", "mug_32x32", "shoe_32x32"]
    assert load_latent(tmp_path / "mug_24x40.latent").shape == (1, *wide)
    assert Image.open(tmp_path / "mug_24x40.png").size == (40, 24)


def test_names_are_safe_and_distinct(tiny, pipe_of, tmp_path):
    names = ["a/b c", "a b/c", "A_B_C", "..", "Tasse à café", "杯子", "mug", "mug_draw1", "x" * 300]
    save_comfyui_starts(pipe_of(fit(tiny.LATENT_SHAPE, names=names, components=1)), tmp_path, draws=1)
    stems = {path.stem for path in tmp_path.glob("*.latent")}
    means = {
        "a_b_c",
        "a_b_c_2",
        "A_B_C_3",
        "class_4",
        "Tasse_a_cafe",
        "class_6",
        "mug",
        "mug_draw1_2",
        "x" * 80,
    }
    assert means < stems
    assert len({stem.lower() for stem in stems}) == 2 * len(names)
    assert "`class_6.latent`: 杯子, mean, 32x32 pixels" in (tmp_path / "README.md").read_text("utf-8")


def test_each_file_carries_its_own_workflow(tiny, pipe_of, tmp_path):
    start = fit(tiny.LATENT_SHAPE, caption_prefixes={"mug": "a mug", "shoe": ""})
    options = {"checkpoint_name": "brand.safetensors"}
    save_comfyui_starts(pipe_of(start), tmp_path, **options)
    found = {}
    for name in CLASSES:
        with safe_open(tmp_path / f"{name}.latent", framework="pt") as file:
            found[name] = json.loads(file.metadata()["prompt"])
    assert found["mug"] == json.loads((tmp_path / "workflow.json").read_text())
    expected = {"mug": "a mug", "shoe": "shoe"}
    for name, prompt in expected.items():
        assert found[name] == comfyui_workflow(f"{name}.latent", prompt=prompt, **options)
    save_comfyui_starts(pipe_of(start), tmp_path, prompts={"mug": "a red mug"})
    workflow = json.loads((tmp_path / "workflow.json").read_text())
    assert workflow["2"]["inputs"]["text"] == "a red mug"
    assert workflow["1"]["inputs"]["ckpt_name"] == "onbrand.safetensors"


INPUTS = {
    "CheckpointLoaderSimple": {"ckpt_name"},
    "CLIPTextEncode": {"text", "clip"},
    "LoadLatent": {"latent"},
    "RepeatLatentBatch": {"samples", "amount"},
    "KSampler": {
        "model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image",
        "denoise",
    },
    "VAEDecode": {"samples", "vae"},
    "SaveImage": {"images", "filename_prefix"},
}  # fmt: skip
OUTPUTS = {
    "CheckpointLoaderSimple": ["model", "clip", "vae"],
    "CLIPTextEncode": ["conditioning"],
    "LoadLatent": ["latent"],
    "RepeatLatentBatch": ["latent"],
    "KSampler": ["latent"],
    "VAEDecode": ["image"],
}
TAKES = {
    "samples": "latent",
    "latent_image": "latent",
    "positive": "conditioning",
    "negative": "conditioning",
}


def test_the_workflow_joins_comfyuis_nodes_by_their_types():
    workflow = comfyui_workflow("mug.latent", checkpoint_name="c.safetensors", prompt="a mug")
    assert {node["class_type"] for node in workflow.values()} == set(INPUTS)
    for node in workflow.values():
        assert set(node["inputs"]) == INPUTS[node["class_type"]]
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source, number = value
                kind = OUTPUTS[workflow[source]["class_type"]][number]
                assert kind == TAKES.get(name, name.removesuffix("s")), (node, name)
    sampler = next(node["inputs"] for node in workflow.values() if node["class_type"] == "KSampler")
    assert sampler["denoise"] == 1.0
    assert sampler["steps"] == 20
    assert sampler["scheduler"] in SCHEDULERS


@pytest.mark.parametrize(
    ("offset_from", "skip_interval", "scheduler"),
    [(951, 50, "ddim_uniform"), (952, 48, "normal"), (1000, 0, "ddim_uniform")],
)
def test_the_workflow_begins_inside_the_offset_range(
    tiny, pipe_of, tmp_path, offset_from, skip_interval, scheduler
):
    x = torch.randn(4, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    start = StartDistribution.fit(
        x,
        torch.zeros(4, dtype=torch.long),
        class_names=["mug"],
        offset_from=offset_from,
        skip_interval=skip_interval,
    )
    save_comfyui_starts(pipe_of(start), tmp_path)
    workflow = json.loads((tmp_path / "workflow.json").read_text())
    assert workflow["6"]["inputs"]["scheduler"] == scheduler
    assert f"scheduler is `{scheduler}`" in (tmp_path / "README.md").read_text()
    ddim = tiny.make_scheduler()
    ddim.set_timesteps(20)
    assert ddim.timesteps[0] == FIRST_TIMESTEP == range(1, 1000, 1000 // 20)[-1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ({"beta_end": 0.0049}, "schedule is not Stable Diffusion's"),
        ({"trained_betas": [0.01] * 1000}, "schedule is not Stable Diffusion's"),
    ],
)
def test_the_how_to_says_where_the_schedule_is_another(tiny, pipe_of, tmp_path, changes, words):
    save_comfyui_starts(pipe_of(scheduler=tiny.make_scheduler(**changes)), tmp_path)
    assert words in (tmp_path / "README.md").read_text()


def test_the_how_to_says_where_the_scale_is_another_and_of_a_controlnet(tiny, components, tmp_path):
    parts = components | {"vae": tiny.make_vae(scaling_factor=0.5)}
    controlnet = tiny.make_controlnet(parts["unet"])
    start = fit(tiny.LATENT_SHAPE)
    pipe = OffsetStableDiffusionControlNetPipeline(**parts, controlnet=controlnet, start_distribution=start)
    save_comfyui_starts(pipe, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "by 0.18215 with a shift of 0; this VAE's factor is 0.5" in text
    assert "It has a ControlNet" in text


@pytest.mark.parametrize(("force_upcast", "dtype"), [(True, torch.float32), (False, torch.float16)])
def test_a_half_precision_vae_that_overflows_decodes_in_full(
    tiny, pipe_of, tmp_path, monkeypatch, force_upcast, dtype
):
    decoded, decode = [], AutoencoderKL.decode

    def noted(vae, z, **options):
        decoded.append((vae.dtype, z.dtype))
        return decode(vae, z, **options)

    monkeypatch.setattr(AutoencoderKL, "decode", noted)
    pipe = pipe_of(vae=tiny.make_vae(force_upcast=force_upcast).half())
    save_comfyui_starts(pipe, tmp_path)
    assert set(decoded) == {(dtype, dtype)}
    assert pipe.vae.dtype == torch.float16


def test_errors(components, pipe_of, tmp_path: Path):
    folder = tmp_path / "none"
    with pytest.raises(ValueError, match="pipeline must have a start distribution, got one without"):
        save_comfyui_starts(OffsetStableDiffusionPipeline(**components), folder)
    with pytest.raises(ValueError, match="draws must be at least 0, got -1"):
        save_comfyui_starts(pipe_of(), folder, draws=-1)
    with pytest.raises(ValueError, match="prompts must be of the classes mug, shoe, got one of 'mugg'"):
        save_comfyui_starts(pipe_of(), folder, prompts={"mugg": "a mug"})
    assert not folder.exists()
