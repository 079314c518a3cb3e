"""A saved checkpoint by itself: the same pictures where onbrand is not installed, and files others read."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.utils.dynamic_modules_utils import find_pipeline_class
from onbrand import inference
from onbrand.inference import load_pipeline
from onbrand.inference.bundle import pipeline_source
from onbrand.inference.text import pooled_text
from onbrand.pca import StartDistribution, text_fingerprint, vae_fingerprint
from PIL import Image
from safetensors.torch import load_file

KINDS = {
    "text": "StableDiffusionPipeline",
    "sd": "StableDiffusionPipeline",
    "sd img2img": "StableDiffusionImg2ImgPipeline",
    "sd control": "StableDiffusionControlNetPipeline",
    "xl": "StableDiffusionXLPipeline",
    "xl control": "StableDiffusionXLControlNetPipeline",
    "xl inpaint": "StableDiffusionXLInpaintPipeline",
}
WIDE = {"width": 48, "height": 32}

THERE = """
import json, os, sys
sys.modules["onbrand"] = None
import diffusers, numpy, torch
from diffusers import DiffusionPipeline
from PIL import Image

plan = json.load(open(sys.argv[1]))

def load(folder, **options):
    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=folder, trust_remote_code=True, **options
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe

def draw(pipe, call):
    call = {name: Image.open(value) if name in plan["pictures"] else value for name, value in call.items()}
    generator = torch.Generator().manual_seed(0)
    return pipe("a mug", generator=generator, output_type="np", **call).images[0]

told = {}
try:
    DiffusionPipeline.from_pretrained(plan["marked"], custom_pipeline=plan["marked"])
except ValueError as error:
    told["untrusted"] = str(error)
told["ran"] = [os.path.exists(plan["marker"])]
pipes = {kind: load(case["folder"]) for kind, case in plan["cases"].items()}
for kind, case in plan["cases"].items():
    pictures = {name: draw(pipes[kind], call) for name, call in case["calls"].items()}
    numpy.savez(case["drawn"], **pictures)
    told[kind] = [type(pipes[kind]).__name__, type(pipes[kind].start_distribution).__module__]
    told[f"{kind} plain"] = type(getattr(diffusers, case["plain"]).from_pretrained(case["folder"])).__name__
# the first was loaded before all others
pipes["text"].save_pretrained(plan["cases"]["text"]["again"])
for kind, case in list(plan["cases"].items())[1:]:
    load(case["folder"]).save_pretrained(case["again"])
for kind, case in plan["cases"].items():
    name, call = next(iter(case["calls"].items()))
    numpy.savez(case["redrawn"], **{name: draw(load(case["again"]), call)})

half = load(plan["half"], variant="fp16", torch_dtype=torch.float16)
half.save_pretrained(plan["half again"], variant="fp16")
half = load(plan["half again"], variant="fp16", torch_dtype=torch.float16)
told["half"] = [str(half.unet.dtype), str(half.vae.dtype), str(half.start_distribution.mean.dtype)]
told["half picture"] = bool(numpy.isfinite(draw(half, {"class_name": "mug", "num_inference_steps": 2})).all())

case = plan["cases"]["sd"]
own = type(pipes["sd"]).from_pretrained(case["folder"])
own.save_pretrained(plan["own again"])
remade = load(plan["own again"])
both = {name: draw(pipe, case["calls"]["class"]) for name, pipe in (("own", own), ("remade", remade))}
numpy.savez(plan["own drawn"], **both)
load(plan["marked"])
told["ran"].append(os.path.exists(plan["marker"]))
print(json.dumps(told))
"""


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def statistics(tiny, size, **options):
    x = torch.randn(20, 4, *size, generator=torch.Generator().manual_seed(0)) + 1
    return StartDistribution.fit(
        x,
        torch.arange(20) % 2,
        class_names=["mug", "shoe"],
        components=2,
        vae_fingerprint=vae_fingerprint(tiny.make_vae()),
        **options,
    )


@pytest.fixture(scope="module")
def distribution(tiny):
    """8x8 with a bucket 8x12."""
    distribution = statistics(tiny, (8, 8))
    distribution.add_bucket(statistics(tiny, (8, 12)))
    return distribution


def make(tiny, kind, distribution):
    parts = tiny.make_xl_components() if "xl" in kind else tiny.make_components()
    if kind.endswith(("img2img", "inpaint")):
        parts.pop("add_watermarker", None)
    if "control" in kind:
        parts["controlnet"] = tiny.make_controlnet(parts["unet"], effect=1.0)
    pipe = quiet(getattr(inference, f"Offset{KINDS[kind]}")(**parts))
    if kind == "text":
        captions = [f"{colour} {thing}" for colour in ("red", "blue", "a") for thing in ("mug", "shoe")] * 4
        embeds = pooled_text(pipe, captions)
        told = text_fingerprint(lambda captions: pooled_text(pipe, captions))
        x = torch.randn(len(embeds), 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
        x = x + 5 * embeds.mean(1)[:, None, None, None]
        names, ids = ["mug", "shoe"], torch.arange(len(embeds)) % 2
        text = {"family": "text", "text_embeds": embeds, "text_fingerprint": told}
        distribution = StartDistribution.fit(x, ids, class_names=names, components=2, **text)
    pipe.set_start_distribution(distribution)
    return pipe


def calls_of(kind):
    """Calls by what they show; pictures are named by their file."""
    more = {"num_inference_steps": 4, "guidance_scale": 2.0}
    if "control" in kind or "img2img" in kind or "inpaint" in kind:
        more["image"] = "image.png"
    if "inpaint" in kind:
        more["mask_image"] = "mask_image.png"
    calls = {"class": {"class_name": "mug"}, "wide": {"class_name": "shoe", **WIDE}}
    if "img2img" in kind:
        square = {"height": 32, "width": 32}  # by itself it would take the size nearest to the picture's
        calls["class"] |= square
        calls["projected"] = {"class_name": "mug", "project_start": True, **square}
    else:
        calls["draw"] = {"class_name": "shoe", "start": "draw"}
        calls["picture"] = {"start_image": "start_image.png"}
    if kind == "text":
        del calls["wide"]
    return {name: call | more for name, call in calls.items()}


def draw(pipe, call, folder):
    call = {key: Image.open(folder / v) if str(v).endswith(".png") else v for key, v in call.items()}
    return pipe("a mug", generator=torch.Generator().manual_seed(0), output_type="np", **call).images[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standalone")
    gradient = Image.linear_gradient("L").resize((48, 32))
    gradient.convert("RGB").save(folder / "image.png")
    gradient.rotate(180).convert("RGB").save(folder / "start_image.png")
    gradient.point(lambda value: 255 * (value > 120)).save(folder / "mask_image.png")
    return folder


@pytest.fixture(scope="module")
def here(tiny, distribution, folder):
    """Pictures by kind and call, of pipelines that are saved in the folder."""
    pictures = {}
    for kind in KINDS:
        pipe = make(tiny, kind, distribution)
        pictures[kind] = {name: draw(pipe, call, folder) for name, call in calls_of(kind).items()}
        pipe.save_pretrained(folder / kind)
    make(tiny, "sd", statistics(tiny, (8, 8))).to(torch.float16).save_pretrained(
        folder / "half", variant="fp16"
    )
    marked = shutil.copytree(folder / "sd", folder / "marked")
    for file in (marked / "pipeline.py", marked / "start_distribution" / "start_distribution.py"):
        file.write_text(f"open({str(folder / 'marker')!r}, 'w').close()\n" + file.read_text())
    return pictures


@pytest.fixture(scope="module")
def there(here, folder):
    """What one process without onbrand says of all the checkpoints."""
    pictures = [f"{name}.png" for name in ("image", "mask_image", "start_image")]
    cases = {
        kind: {
            "folder": str(folder / kind),
            "again": str(folder / f"{kind} again"),
            "drawn": str(folder / f"{kind}.npz"),
            "redrawn": str(folder / f"{kind} again.npz"),
            "plain": KINDS[kind],
            "calls": calls_of(kind),
        }
        for kind in KINDS
    }
    plan = {name: str(folder / name) for name in ("marked", "marker", "half", "half again", "own again")}
    plan |= {"own drawn": str(folder / "own.npz"), "cases": cases}
    plan["pictures"] = [name.removesuffix(".png") for name in pictures]
    (folder / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, "-c", THERE, "plan.json"],
        cwd=folder,
        env=os.environ | {"HF_MODULES_CACHE": str(folder / "modules")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def difference(one, other):
    """The largest, in steps of 255."""
    levels = [np.round(255 * picture).astype(int) for picture in (one, other)]
    return np.abs(levels[0] - levels[1]).max()


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_the_same_without_onbrand(kind, here, there, folder):
    drawn, redrawn = np.load(folder / f"{kind}.npz"), np.load(folder / f"{kind} again.npz")
    assert set(drawn) == set(calls_of(kind))
    for name, picture in here[kind].items():
        assert difference(drawn[name], picture) == 0, name
        others = [other for key, other in here[kind].items() if key != name and other.shape == picture.shape]
        assert all(difference(other, picture) > 1 for other in others), name
    for name in redrawn:
        assert difference(redrawn[name], here[kind][name]) == 0
    name, module = there[kind]
    assert name == f"Offset{KINDS[kind]}"
    assert module == "diffusers_modules.local.start_distribution"
    assert there[f"{kind} plain"] == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_there_loads_here(kind, here, there, folder):
    again = folder / f"{kind} again"
    name, call = next(iter(calls_of(kind).items()))
    loaded = quiet(getattr(inference, f"Offset{KINDS[kind]}").from_pretrained(again))
    assert difference(draw(loaded, call, folder), here[kind][name]) == 0
    assert (again / "pipeline.py").read_text() == (folder / kind / "pipeline.py").read_text()
    index = json.loads((again / "model_index.json").read_text())
    assert index["start_distribution"] == ["start_distribution", "StartDistribution"]
    assert index["_class_name"] == f"Offset{KINDS[kind]}"
    if not kind.endswith(("img2img", "inpaint")):
        assert type(load_pipeline(again)) is type(loaded)


def test_the_class_of_a_checkpoint_loads_and_saves_by_itself(here, there, folder):
    drawn = np.load(folder / "own.npz")
    for name in ("own", "remade"):
        assert difference(drawn[name], here["sd"]["class"]) == 0


def test_half_precision_there_keeps_float32_statistics(there):
    assert there["half"] == ["torch.float16", "torch.float16", "torch.float32"]
    assert there["half picture"]


def test_nothing_runs_without_trust(there):
    assert "trust_remote_code=True" in there["untrusted"]
    assert there["ran"] == [False, True]


PIPELINES = [n for n in inference.__all__ if n.startswith("Offset") and n.endswith("Pipeline")]


@pytest.mark.parametrize("name", PIPELINES)
def test_the_file_defines_one_pipeline_and_needs_diffusers_alone(name, tmp_path, monkeypatch):
    source = pipeline_source(getattr(inference, name))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level
            assert node.module.split(".")[0] != "onbrand"
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "onbrand" for alias in node.names)
    file = tmp_path / "pipeline.py"
    file.write_text(source)
    monkeypatch.setitem(sys.modules, "standing_alone", None)  # taken away again
    spec = importlib.util.spec_from_file_location("standing_alone", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = find_pipeline_class(module)
    assert found.__name__ == name
    assert issubclass(found, getattr(diffusers, name.removeprefix("Offset")))
    assert found.source_text == source


def test_two_modules_with_one_name_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "carried"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "below.py").write_text("SIZE = 2\n\n\nclass Below:\n    pass\n")
    (package / "above.py").write_text(
        "from .below import Below\n\nSIZE = 1\n\n\nclass Above(Below):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    above = importlib.import_module("carried.above")
    made = type("Made", (above.Above, StableDiffusionPipeline), {})
    with pytest.raises(ValueError, match=r"SIZE must be defined once, got carried\.below and carried\.above"):
        pipeline_source(made)
    for module in ("carried", "carried.above", "carried.below"):
        monkeypatch.delitem(sys.modules, module)


class Derived(inference.OffsetStableDiffusionPipeline):
    """Of someone who has onbrand."""


def test_a_derived_class_saves_the_file_of_the_class_behind_it(tiny, distribution, tmp_path):
    Derived(**tiny.make_components(), start_distribution=distribution).save_pretrained(tmp_path)
    expected = pipeline_source(inference.OffsetStableDiffusionPipeline)
    assert (tmp_path / "pipeline.py").read_text() == expected


def test_without_a_start_distribution_the_folder_is_diffusers_own(tiny, distribution, tmp_path):
    pipe = make(tiny, "sd", distribution)
    pipe.set_start_distribution(None)
    pipe.save_pretrained(tmp_path)
    StableDiffusionPipeline(**tiny.make_components()).save_pretrained(tmp_path / "plain")
    ours, theirs = (json.loads((f / "model_index.json").read_text()) for f in (tmp_path, tmp_path / "plain"))
    assert ours == theirs
    assert not (tmp_path / "pipeline.py").exists()
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is StableDiffusionPipeline


@pytest.mark.parametrize("assigned", [True, False])
def test_an_assigned_start_distribution_is_saved(tiny, distribution, tmp_path, assigned):
    pipe = make(tiny, "sd", None if assigned else distribution)
    pipe.start_distribution = distribution if assigned else None
    pipe.save_pretrained(tmp_path)
    assert (load_pipeline(tmp_path).start_distribution is not None) == assigned
    assert (tmp_path / "start_distribution" / "config.json").exists() == assigned


OPTIONS = {
    "whole": {},
    "fp16": {"variant": "fp16"},
    "shards": {"max_shard_size": "3KB"},
    "fp16 shards": {"variant": "fp16", "max_shard_size": "3KB"},
}


@pytest.mark.parametrize("how", OPTIONS)
@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_text_encoders_keep_the_names_other_tools_expect(kind, how, tiny, tmp_path):
    pipe = make(tiny, kind, statistics(tiny, (8, 8)))
    pipe.save_pretrained(tmp_path, **OPTIONS[how])
    for name in ("text_encoder", "text_encoder_2")[: 1 + (kind == "xl")]:
        folder, encoder = tmp_path / name, getattr(pipe, name)
        files = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
        keys = [key for tensors in files.values() for key in tensors]
        assert "text_model.embeddings.token_embedding.weight" in keys
        assert all(key.startswith(("text_model.", "text_projection.")) for key in keys)
        indices = list(folder.glob("*.index*.json"))
        assert (len(files) > 1) == ("shards" in how) == (len(indices) == 1)
        if indices:
            expected = {key: file for file, tensors in files.items() for key in tensors}
            assert json.loads(indices[0].read_text())["weight_map"] == expected
        loaded = type(encoder).from_pretrained(folder, variant=OPTIONS[how].get("variant"))
        weights = encoder.state_dict()
        assert weights.keys() == loaded.state_dict().keys()
        assert all(torch.equal(weight, weights[key]) for key, weight in loaded.state_dict().items())


def test_other_text_encoders_keep_their_own_names(tiny, tmp_path):
    config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=70, **config))
    parts = tiny.make_components() | {"text_encoder": bert}
    inference.OffsetStableDiffusionPipeline(**parts).save_pretrained(tmp_path / "pipe")
    bert.save_pretrained(tmp_path / "alone")
    ours = load_file(tmp_path / "pipe" / "text_encoder" / "model.safetensors")
    theirs = load_file(tmp_path / "alone" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert not any(key.startswith("text_model.") for key in ours)
