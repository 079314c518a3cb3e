"""`onbrand export`: every kind, drawn again in a fresh process, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onbrand.__main__ import app
from onbrand.commands.export import open_source, possible_kinds
from onbrand.configs import Config
from onbrand.export import lora
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
    assert "trust_remote_code=True" in card and "from pure noise" in card
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
    assert possible_kinds(open_source(str(run))) == ["diffusers", "controlnet"]
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
    from onbrand.export.check import check_elsewhere, draw_proof

    proof = draw_proof(load_pipeline(checkpoint), prompt="a mug", class_name="mug")
    assert check_elsewhere(proof, "diffusers", checkpoint) <= 1
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="diffusers export must load in a fresh process, got: .*Error"):
        check_elsewhere(proof, "diffusers", broken)
