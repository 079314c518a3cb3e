"""`onbrand export`: every kind, drawn again in a fresh process, and what it refuses."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from diffusers import EulerAncestralDiscreteScheduler
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from onbrand.__main__ import app
from onbrand.commands.export import _prompt
from onbrand.commands.export_source import find_place, open_source, possible_kinds, stored_precision
from onbrand.configs import Config
from onbrand.export import lora, reload
from onbrand.export.check import check_elsewhere, draw_proof
from onbrand.inference import load_pipeline
from onbrand.inference.generate import generate
from onbrand.pca import Sampler, StartDistribution
from onbrand.train.draw import round_robin
from onbrand.train.prepare import split_catalogue
from onbrand.train.run import run_training
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPConfig
from typer.testing import CliRunner

QUIET = Console(quiet=True)
MakeConfig = Callable[..., Config]
SHORT = {
    "train__steps": 2,
    "train__preview_every": 2,
    "run__audit__pictures": 2,
    "run__audit__steps": 20,
    "train__learning_rate": 0.05,
}
LORA = {
    "model__method": "lora",
    "model__lora__rank": 2,
    "model__lora__alpha": 1,
    "model__text_encoder": "lora",
}


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(match: str, *arguments: object) -> None:
    with pytest.raises(ValueError, match=match):
        CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def lora_run(make_config: MakeConfig) -> Path:
    return run_training(make_config(**SHORT, **LORA), console=QUIET)


@pytest.fixture
def checkpoint(make_config: MakeConfig, tiny_base: Path, tmp_path: Path) -> Path:
    """A folder with a start distribution of two classes, made by no run."""
    pipeline = load_pipeline(tiny_base)
    latents = torch.randn(20, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    start = StartDistribution.fit(latents, torch.arange(20) % 2, class_names=["mug", "shoe"])
    pipeline.set_start_distribution(start)
    pipeline.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_run_in_every_form(lora_run: Path, make_config: MakeConfig) -> None:
    said = invoke(lora_run, "--to", "all")
    kinds = ["diffusers", "single-file", "lora", "kohya", "comfyui"]
    assert said.count("drawn again in a fresh process") == len(kinds)
    exports = lora_run / "exports"
    assert sorted(path.name for path in exports.iterdir()) == sorted(kinds)
    own = load_pipeline(lora_run / "model").start_distribution
    for kind in kinds:
        beside = StartDistribution.from_pretrained(exports / kind / "start_distribution")
        assert torch.equal(beside.mean, own.mean), kind
    with safe_open(exports / "single-file" / "run.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["modelspec.architecture"] == "stable-diffusion-v1"
    assert json.loads(header["onbrand.config"])["model"]["lora"]["rank"] == 2
    with safe_open(exports / "kohya" / "run.safetensors", framework="pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-v1/lora"
    card = (exports / "diffusers" / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert "from pure noise" in card
    assert card == (lora_run / "model" / "README.md").read_text()
    refused("output must be new, got .*kohya, which exists", lora_run, "--to", "kohya")
    # the preview at the last step is of the shipped weights
    catalogue = split_catalogue(make_config(**SHORT, **LORA))[0]
    rows = round_robin(catalogue, 8, again=True)
    pipeline = load_pipeline(exports / "diffusers")
    drawn = generate(
        pipeline,
        [catalogue.captions[row] for row in rows],
        class_names=[catalogue.pictures[row].class_name for row in rows],
        start=pipeline.start_distribution.default_start,
        sampler=Sampler("DDIMScheduler", 20),
    )
    for number, picture in enumerate(drawn):
        shown = Image.open(lora_run / "samples" / "growth" / f"2_{number}.png")
        assert np.abs(np.asarray(picture, int) - np.asarray(shown, int)).max() <= 1


def test_the_proof_is_drawn_from_words(checkpoint: Path) -> None:
    """An empty prompt is the negative one too, and no text encoder could be told from another by it."""
    source = open_source(find_place(str(checkpoint)))
    assert _prompt(source) == "a mug"
    source.pipeline.start_distribution.register_to_config(caption_prefixes={"mug": "", "shoe": "our shoe"})
    assert _prompt(source) == "a mug"
    source.pipeline.start_distribution.register_to_config(caption_prefixes={"mug": "our mug", "shoe": ""})
    assert _prompt(source) == "our mug"


def test_an_export_that_draws_another_picture_is_not_kept(lora_run: Path, monkeypatch) -> None:
    true = lora.kohya_lora

    def doubled(*args: object, **options: object) -> dict[str, torch.Tensor]:
        return {key: 2 * value for key, value in true(*args, **options).items()}

    monkeypatch.setattr(lora, "kohya_lora", doubled)
    refused(r"lora export must draw the same picture within 1/255, got \d", lora_run, "--to", "kohya")
    assert not (lora_run / "exports" / "kohya").exists()
    assert not list(lora_run.rglob("*.partial"))


def test_a_controlnet_goes_with_its_start(make_config: MakeConfig, tmp_path: Path) -> None:
    run = run_training(
        make_config(**SHORT, model__method="frozen", model__controlnet="{condition: segment}"), console=QUIET
    )
    out = tmp_path / "out"
    said = invoke(run, "--to", "controlnet", "--to", "diffusers", "-o", out)
    assert said.count("drawn again in a fresh process") == 2
    assert (out / "controlnet" / "diffusion_pytorch_model.safetensors").exists()
    assert (out / "controlnet" / "start_distribution" / "config.json").exists()
    assert possible_kinds(open_source(find_place(str(run)))) == ["diffusers", "controlnet"]
    refused("--to must be one of diffusers, controlnet for .*, got single-file", run, "--to", "single-file")


def test_half_precision_files_of_a_checkpoint_that_no_run_made(checkpoint: Path, tmp_path: Path) -> None:
    kinds = ("--to", "diffusers", "--to", "single-file")
    invoke(checkpoint, *kinds, "--dtype", "float16", "-o", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "single-file" / "checkpoint.safetensors")
    assert {value.dtype for value in tensors.values() if value.is_floating_point()} == {torch.float16}
    loaded = load_pipeline(tmp_path / "out" / "diffusers")
    assert loaded.start_distribution.mean.dtype == torch.float32
    unet = load_file(tmp_path / "out" / "diffusers" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in unet.values()} == {torch.float16}


def test_a_plain_checkpoint_stays_plain(tiny_base: Path, tmp_path: Path) -> None:
    invoke(tiny_base, "--to", "all", "-o", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["diffusers", "single-file"]
    index = json.loads((tmp_path / "out" / "diffusers" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"


def test_pushing_uploads_what_was_written(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    calls = []

    class Hub:
        def create_repo(self, *args: object, **options: object) -> None:
            calls.append((*args, options))

        def upload_folder(self, **options: object) -> None:
            assert (Path(str(options["folder_path"])) / "start_distribution").is_dir()
            calls.append(options)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    kinds = ("--to", "diffusers", "--to", "comfyui", "--draws", 0)
    said = invoke(checkpoint, *kinds, "-o", tmp_path / "out", "--push", "brand/model", "--private")
    assert "brand/model" in said
    assert calls == [
        ("brand/model", {"exist_ok": True, "private": True}),
        {"repo_id": "brand/model", "folder_path": tmp_path / "out" / "diffusers", "path_in_repo": None},
        {"repo_id": "brand/model", "folder_path": tmp_path / "out" / "comfyui", "path_in_repo": "comfyui"},
    ]
    # after an upload that broke off the same command goes on from what is written
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    first = list(calls)
    invoke(checkpoint, *kinds, "-o", tmp_path / "out", "--push", "brand/model", "--private")
    assert calls == 2 * first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == written


def test_bad_input_is_refused_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("--to must be one of diffusers, .* or all, got 'onnx'", checkpoint, "--to", "onnx", "-o", out)
    refused("--dtype must be one of .*, got 'int8'", checkpoint, "--to", "diffusers", "--dtype", "int8")
    refused("--to must be one of diffusers, single-file, comfyui for", checkpoint, "--to", "lora", "-o", out)
    refused("model must be an existing folder", tmp_path / "nothing", "--to", "diffusers", "-o", out)
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("")
    refused("run must be finished: .*model must exist", unfinished, "--to", "diffusers", "-o", out)
    assert not out.exists()


def test_a_damaged_export_says_what_the_other_process_said(checkpoint: Path, tmp_path: Path) -> None:
    proof = draw_proof(load_pipeline(checkpoint), prompt="a mug", class_name="mug")
    assert check_elsewhere(proof, "diffusers", checkpoint) <= 1
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"diffusers export must load in a fresh process, got: .*Error"):
        check_elsewhere(proof, "diffusers", broken)


def test_a_scheduler_that_adds_noise_draws_the_same_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(checkpoint)
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path / "ancestral")
    invoke(
        tmp_path / "ancestral",
        "--to",
        "diffusers",
        "--to",
        "single-file",
        "--to",
        "comfyui",
        "-o",
        tmp_path / "out",
    )
    assert (tmp_path / "out" / "single-file" / "ancestral.safetensors").is_file()


def test_a_half_precision_checkpoint_stays_so(checkpoint: Path, tmp_path: Path) -> None:
    half = tmp_path / "mugs v1.5"
    load_pipeline(checkpoint, torch_dtype=torch.float16).save_pretrained(half)
    invoke(half, "--to", "single-file", "--to", "diffusers", "-o", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "single-file" / "mugs v1.5.safetensors")
    assert {value.dtype for value in tensors.values() if value.is_floating_point()} == {torch.float16}
    unet = Path("unet", "diffusion_pytorch_model.safetensors")
    written, own = load_file(tmp_path / "out" / "diffusers" / unet), load_file(half / unet)
    assert written.keys() == own.keys()
    assert all(torch.equal(written[key], own[key]) for key in own)
    assert stored_precision(str(checkpoint)) is None
    assert stored_precision("brand/model") is None


def test_what_has_no_such_form_is_known_before_anything_is_written(
    checkpoint: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    source = open_source(find_place(str(checkpoint)))
    (tmp_path / "run" / "lora").mkdir(parents=True)

    def kinds(**changes: object) -> list[str]:
        return possible_kinds(source._replace(run=tmp_path / "run", config=make_config(**changes)))

    adapters = ["diffusers", "single-file", "lora", "kohya", "comfyui"]
    assert kinds(**LORA) == adapters
    assert kinds(**LORA | {"model__method": "frozen"}) == adapters
    # adapters are not all that was trained: the base with them is not the model
    for more in (
        {"model__method": "attention"},
        {"model__text_encoder": "full"},
        {"model__controlnet": "{condition: segment}"},
    ):
        assert not {"lora", "kohya"} & set(kinds(**LORA | more)), more
    file = tmp_path / "model.safetensors"
    file.touch()
    assert possible_kinds(source._replace(model=str(file))) == ["diffusers"]
    source.pipeline.tokenizer.add_tokens(["<brand>"])
    assert possible_kinds(source) == ["diffusers", "comfyui"]


def test_a_run_is_known_by_its_name_from_inside_it(
    checkpoint: Path, make_config: MakeConfig, tmp_path: Path, monkeypatch
) -> None:
    run = tmp_path / "mugs v1.5"
    shutil.copytree(checkpoint, run / "model")
    (run / "config.yaml").write_text(yaml.safe_dump(make_config().to_dict()))
    monkeypatch.chdir(run)
    for what in (".", "model"):
        source = open_source(find_place(what))
        assert (source.run, source.name, source.model) == (run, run.name, str(run / "model"))
    # what only lies in the folder of a run is not that run
    shutil.copytree(checkpoint, run / "other")
    assert open_source(find_place("other"))[1:] == (str(run / "other"), "other", None, None)


def test_a_repository_that_cannot_be_made_is_told_first(
    checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    class Hub:
        def create_repo(self, *args: object, **options: object) -> None:
            raise ValueError("log in first")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    message = "--push must be a repository you can write to, got brand/model: log in first"
    refused(message, checkpoint, "--to", "diffusers", "-o", tmp_path / "out", "--push", "brand/model")
    assert not (tmp_path / "out").exists()


def test_the_proof_leaves_the_safety_checker_where_it_was(checkpoint: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**sizes, "image_size": 8, "patch_size": 8}
    form = CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=8)
    pipeline = load_pipeline(checkpoint)
    pipeline.register_modules(safety_checker=StableDiffusionSafetyChecker(form))
    draw_proof(pipeline, prompt="a mug", class_name="mug")
    pipeline.save_pretrained(tmp_path / "again")
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert (tmp_path / "again" / "safety_checker").is_dir()


def test_both_sides_of_the_proof_round_alike(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    """The same device, without the short floats that a GPU's convolutions take by default."""
    exact, seen = torch.backends.cudnn, []
    pipeline = load_pipeline(checkpoint)
    plain_step = pipeline.scheduler.step

    @functools.wraps(plain_step)
    def step(*args: object, **options: object) -> object:
        seen.append((exact.allow_tf32, exact.deterministic))
        return plain_step(*args, **options)

    pipeline.scheduler.step = step
    proof = draw_proof(pipeline, prompt="a mug", class_name="mug")
    assert set(seen) == {(False, True)}
    assert proof.device == "cpu"

    class Loaded:
        def to(self, device: str) -> "Loaded":
            seen.append(device)
            return self

        def set_progress_bar_config(self, **options: object) -> None: ...

        def __call__(self, **call: object) -> object:
            seen.append((exact.allow_tf32, exact.deterministic))
            return SimpleNamespace(images=np.zeros((1, 8, 8, 3), np.float32))

    seen.clear()
    monkeypatch.setattr(reload, "load", lambda job: Loaded())
    job = {"kind": "plain", "device": "cuda:1", "call": {}, "latents": None, "image": None, "seed": 0}
    reload.main(job | {"out": str(tmp_path / "out.safetensors")})
    assert seen == ["cuda:1", (False, True)]


def test_the_other_process_finds_what_this_one_finds(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'w')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    proof = draw_proof(load_pipeline(checkpoint), prompt="a mug", class_name="mug")
    assert check_elsewhere(proof, "diffusers", checkpoint) <= 1
    assert (tmp_path / "seen").exists()
