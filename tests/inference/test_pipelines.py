"""The four pipelines alike: what reaches the networks, diffusers' own pictures, files, sizes."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, ModelMixin
from onbrand import inference
from onbrand.inference import load_pipeline
from onbrand.pca import StartDistribution, vae_fingerprint
from PIL import Image

STEPS = 20
KINDS = {
    "sd": "StableDiffusionPipeline",
    "xl": "StableDiffusionXLPipeline",
    "sd control": "StableDiffusionControlNetPipeline",
    "xl control": "StableDiffusionXLControlNetPipeline",
}
PROMPTS = ["a shoe", "a mug, red"]

pytestmark = pytest.mark.filterwarnings("ignore:the sampler's first timestep")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def parts(kind, tiny):
    parts = tiny.make_xl_components() if "xl" in kind else tiny.make_components()
    if "control" in kind:
        parts["controlnet"] = tiny.make_controlnet(parts["unet"], effect=1.0)
    return parts


def statistics(tiny, size, *, ids=None, **options):
    x = torch.randn(20, 4, *size, generator=torch.Generator().manual_seed(0)) + 1
    return StartDistribution.fit(
        x,
        torch.arange(20) % 2 if ids is None else ids,
        class_names=["mug", "shoe"],
        components=2,
        caption_prefixes={"mug": "a mug", "shoe": "a shoe"},
        vae_fingerprint=vae_fingerprint(tiny.make_vae()),
        offset_from=941,
        **options,
    )


@pytest.fixture(scope="module")
def distribution(tiny):
    """8x8 with a bucket 8x12, of mugs alone."""
    distribution = statistics(tiny, (8, 8))
    distribution.add_bucket(statistics(tiny, (8, 12), ids=torch.zeros(20).long(), allow_empty=True))
    return distribution


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def ours(kind):
    return getattr(inference, f"Offset{KINDS[kind]}")


@pytest.fixture
def theirs(kind):
    return getattr(diffusers, KINDS[kind])


@pytest.fixture
def pipe(ours, parts, distribution):
    return quiet(ours(**parts, start_distribution=distribution))


@pytest.fixture
def conditions(kind):
    """Of two prompts; of one, the first."""

    def make(number=1):
        pictures = [Image.linear_gradient("L").convert("RGB"), Image.new("RGB", (32, 32), "red")]
        return {"image": pictures[:number]} if "control" in kind else {}

    return make


class Reached(Exception):
    """Carries the first input of a network out of the pipeline."""


@pytest.fixture
def reached(monkeypatch, parts):
    """Runs a call up to a network and returns the latents it was shown."""

    def forward(sample, *args, **kwargs):
        raise Reached(sample)

    def run(pipe, *args, network="unet", **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(parts[network], "forward", forward)
            with pytest.raises(Reached) as caught:
                pipe(*args, **{"num_inference_steps": STEPS, "guidance_scale": 1.0, **kwargs})
        return caught.value.args[0]

    return run


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def expected(pipe, x_start, noise):
    """The first input of the UNet, by the closed form for DDIM."""
    pipe.scheduler.set_timesteps(STEPS)
    a = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps[0]]
    return a.sqrt() * x_start + (1 - a).sqrt() * noise


def test_the_networks_start_from_each_prompts_class(pipe, parts, reached, distribution, conditions):
    g = seeded()
    noise = torch.cat([torch.randn(2, 4, 8, 8, generator=g) for _ in PROMPTS])
    start = expected(pipe, distribution.mean[[1, 1, 0, 0]], noise)
    for network in {"unet", "controlnet"} & set(parts):
        call = {"num_images_per_prompt": 2, "generator": seeded(), **conditions(2)}
        torch.testing.assert_close(reached(pipe, PROMPTS, network=network, **call), start)


def test_both_branches_of_guidance_start_alike(pipe, reached, distribution, conditions):
    call = {"guidance_scale": 3.0, "negative_prompt": "dark", "generator": seeded(), **conditions()}
    start = expected(pipe, distribution.mean[:1], torch.randn(1, 4, 8, 8, generator=seeded()))
    torch.testing.assert_close(reached(pipe, "a mug", **call), start.repeat(2, 1, 1, 1))


def test_a_size_picks_its_bucket(pipe, reached, distribution, conditions):
    noise = torch.randn(2, 4, 8, 12, generator=seeded())
    call = {"height": 32, "width": 48, "num_images_per_prompt": 2, **conditions()}
    start = expected(pipe, distribution.at(8, 12).mean[[0, 0]], noise)
    torch.testing.assert_close(reached(pipe, "a mug", generator=seeded(), **call), start)
    with pytest.raises(
        ValueError, match="must be 32 x 32 or 32 x 48 as in the start distribution, got 48 x 32"
    ):
        pipe("a mug", **conditions(), height=48)
    with pytest.raises(ValueError, match="must have pictures at size 8x12, got 'shoe' with none"):
        pipe("a shoe", **call)


def test_without_a_start_distribution_pictures_are_diffusers_own(kind, ours, theirs, parts, pipe, conditions):
    plain, oracle = quiet(ours(**parts)), quiet(theirs(**parts))
    for scheduler in (parts["scheduler"], EulerDiscreteScheduler.from_config(parts["scheduler"].config)):
        call = {"num_inference_steps": 2, "output_type": "np", "height": 32, "width": 32, **conditions(2)}
        call |= {"negative_prompt": ["dark", "small"], "guidance_scale": 2.0}
        call |= {"prompt_2": ["blue", "red"], "original_size": (64, 64)} if "xl" in kind else {}
        call |= {"controlnet_conditioning_scale": 0.5} if "control" in kind else {}
        for each in (plain, oracle, pipe):
            each.scheduler = scheduler
        pictures = oracle(PROMPTS, generator=seeded(), **call).images
        assert np.array_equal(plain(PROMPTS, generator=seeded(), **call).images, pictures)
        assert np.array_equal(pipe(PROMPTS, generator=seeded(), start="none", **call).images, pictures)
        assert not np.array_equal(pipe(PROMPTS, generator=seeded(), **call).images, pictures)


def test_the_start_distribution_is_a_component_like_others(ours, theirs, parts, pipe, distribution):
    names = {"start_distribution", *theirs(**parts).components}
    assert set(pipe.components) == names
    assert pipe.components["start_distribution"] is distribution
    assert ours._get_signature_keys(ours)[0] == sorted(names)
    assert ours._get_signature_types()["start_distribution"] == (ModelMixin, type(None))

    class Derived(ours):
        pass

    assert Derived(**pipe.components).start_distribution is distribution


def picture(pipe, **call):
    call = {"num_inference_steps": 2, "output_type": "np", "generator": seeded(), **call}
    return quiet(pipe)("a mug", **call).images


@pytest.fixture(scope="module")
def checkpoint(kind, parts, distribution, tmp_path_factory):
    """A saved folder with a start distribution; read-only."""
    folder = tmp_path_factory.mktemp("checkpoint")
    getattr(inference, f"Offset{KINDS[kind]}")(**parts, start_distribution=distribution).save_pretrained(
        folder
    )
    return folder


def test_a_saved_folder_loads_with_us_and_diffusers(checkpoint, ours, theirs, pipe, conditions, tmp_path):
    index = json.loads((checkpoint / "model_index.json").read_text())
    assert index["start_distribution"] == ["start_distribution", "StartDistribution"]
    loaded = load_pipeline(checkpoint)
    assert type(loaded) is ours
    assert loaded.start_distribution.sizes == [(8, 8), (8, 12)]
    for call in (conditions(), {"width": 48, **conditions()}):
        assert np.array_equal(picture(loaded, **call), picture(pipe, **call))
    loaded.save_pretrained(tmp_path)
    assert np.array_equal(picture(load_pipeline(tmp_path), **conditions()), picture(pipe, **conditions()))
    plain = theirs.from_pretrained(checkpoint)
    assert np.array_equal(
        picture(plain, height=32, width=32, **conditions()), picture(pipe, start="none", **conditions())
    )


def test_a_plain_folder_is_loaded_as_its_kind(ours, theirs, parts, tmp_path):
    theirs(**parts).save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, torch_dtype=torch.bfloat16)
    assert type(loaded) is ours
    assert loaded.start_distribution is None
    assert loaded.dtype == torch.bfloat16


def test_a_hub_id_is_loaded_as_its_kind(checkpoint, ours, tmp_path, monkeypatch):
    """From a hub cache on disk, as offline."""
    repository, commit = tmp_path / "models--brand--model", 40 * "1"
    shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    loaded = load_pipeline("brand/model")
    assert type(loaded) is ours
    assert loaded.start_distribution.sizes == [(8, 8), (8, 12)]


def test_a_controlnet_is_added_to_a_pipeline(tiny, distribution, tmp_path):
    parts = tiny.make_components()
    controlnet = tiny.make_controlnet(parts["unet"], effect=1.0)
    base = inference.OffsetStableDiffusionPipeline(**parts, start_distribution=distribution)
    base.save_pretrained(tmp_path)
    controlled = inference.OffsetStableDiffusionControlNetPipeline
    loaded = controlled.from_pretrained(tmp_path, controlnet=controlnet)
    image = Image.new("RGB", (32, 32), "red")
    expected = picture(controlled.from_pipe(base, controlnet=controlnet), image=image)
    assert np.array_equal(picture(loaded, image=image), expected)
    assert not np.array_equal(picture(base), expected)
