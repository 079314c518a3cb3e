import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from onbrand.__main__ import app
from PIL import Image, ImageDraw
from typer.testing import CliRunner

runner = CliRunner()


def invoke(*arguments: object) -> str:
    result = runner.invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """Twenty-four dark products on white, two classes."""
    folder = tmp_path / "catalogue"
    folder.mkdir()
    rows = []
    for i in range(24):
        image = Image.new("RGB", (80, 64), "white")
        pen = ImageDraw.Draw(image)
        (pen.ellipse if i % 2 else pen.rectangle)((22, 14, 58 + i % 3, 50), fill=(40 + 5 * i, 60, 90))
        image.save(folder / f"{i:02d}.png")
        rows.append(
            {"file_name": f"{i:02d}.png", "text": f"item {i}", "class": "round" if i % 2 else "square"}
        )
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_init_writes_a_config_that_runs_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    said = invoke("init", path)
    command = f"onbrand train {path} data.source=path/to/catalogue"
    assert path.read_text().splitlines()[0] == f"# {command}"
    assert f"{command} --dry-run" in said
    invoke("train", path, "--help")
    with pytest.raises(ValueError, match="must be a new file"):
        invoke("init", path)


@pytest.mark.parametrize("recipe", ["attention", "lora", "text-encoder", "token"])
def test_init_says_what_a_recipe_on_the_tiny_base_must_be_told(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    told = "model.base=path/or/hub-id data.source=path/to/catalogue data.resolution=512"
    assert f"onbrand train {path} {told} --dry-run" in invoke("init", path, "--recipe", recipe)
    assert path.read_text().startswith(f"# onbrand train {path} {told}\n")


def test_train_sample_and_audit_on_a_catalogue_of_files(
    tiny_base: Path, catalogue: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    out = invoke(
        "train", "quickstart", f"model.base={tiny_base}", f"data.source={catalogue}", "data.resolution=32",
        "train.steps=2", "train.batch_size=4", "train.log_every=1", "run.audit.pictures=4", f"run.dir={run}",
    )  # fmt: skip
    assert "round" in out
    assert "report.html" in out
    sheet = tmp_path / "samples" / "sheet.jpg"
    invoke("sample", run / "model", "item", "--class", "round", "--count", 2, "--seed", 5, "-o", sheet.parent)
    first = Image.open(sheet.parent / "0001.png")
    assert first.size == (32, 32)
    recipe = json.loads(first.text["onbrand"])
    assert (recipe["seed"], recipe["prompt"], recipe["class"]) == (6, "item", "round")
    before = (sheet.parent / "0001.png").read_bytes()
    invoke("sample", run / "model", "item", "--class", "round", "--count", 2, "--seed", 5, "-o", sheet.parent)
    assert (sheet.parent / "0001.png").read_bytes() == before
    # a folder of the catalogue's own pictures passes its own audit
    out = invoke("audit", catalogue, "--against", catalogue, "-o", tmp_path / "audit", "--min-pass", 0.9)
    assert "all rules" in out
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["n"] == 24
    invoke(
        "audit", run / "model", "run.audit.pictures=4", "--against", catalogue, "-o", tmp_path / "model_audit"
    )
    assert (tmp_path / "model_audit" / "sheet.jpg").exists()
    failing = runner.invoke(app, ["audit", str(sheet.parent), "--against", str(catalogue), "-o",
    str(tmp_path / "x"),
                                  "--min-pass", "0.99"])  # fmt: skip
    assert failing.exit_code == 1


def test_fit_attaches_a_start_distribution_without_training(
    tiny_base: Path, catalogue: Path, tmp_path: Path
) -> None:
    from onbrand import load_pipeline

    out = tmp_path / "fitted"
    text = invoke(
        "fit", catalogue, "run.audit.pictures=4", "start.components=2", "--into", tiny_base, "-o", out
    )
    assert "from its start distribution" in text
    fitted = load_pipeline(out)
    assert fitted.start_distribution.components.shape[:2] == (2, 2)
    plain = load_pipeline(tiny_base).unet.state_dict()
    assert all((plain[key] == value).all() for key, value in fitted.unet.state_dict().items())
    assert (out / "fit" / "audits" / "from_pure_noise.json").exists()
    assert (out / "fit" / "start.html").exists()
    with pytest.raises(ValueError, match="output must be a new folder"):
        invoke("fit", catalogue, "--into", tiny_base, "-o", out)


def test_fit_diagnoses_a_catalogue_and_takes_more_pictures(
    tiny_base: Path, catalogue: Path, tmp_path: Path
) -> None:
    from onbrand.pca import StartDistribution, Statistics

    out, more = tmp_path / "fit", tmp_path / "more"
    text = invoke("fit", catalogue, f"model.base={tiny_base}", "start.components=2", "-o", out)
    assert "A linear test tells training starts from pure noise in" in text
    found = json.loads((out / "diagnosis.json").read_text())["32x32"]
    assert [one["class_name"] for one in found["classes"]] == ["round", "square"]
    page = (out / "start.html").read_text()
    assert found["verdict"].split(":")[0] in page
    start = StartDistribution.from_pretrained(out / "start_distribution")
    assert start.components.shape[:2] == (2, 2)
    before = Statistics.load(out / "statistics_32x32.safetensors")
    assert torch.equal(start.mean, before.mean)
    # the same command again replaces its own folder; another folder it leaves alone
    invoke("fit", catalogue, f"model.base={tiny_base}", "start.components=2", "-o", out)
    with pytest.raises(ValueError, match=r"output must be a new folder, got .*catalogue, which exists"):
        invoke("fit", catalogue, f"model.base={tiny_base}", "-o", catalogue)

    more.mkdir()
    rows = []
    for i, kind in enumerate(["square", "square", "star", "star", "star"]):
        Image.new("RGB", (64, 64), (200, 40 * i, 30)).save(more / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"new {i}", "class": kind})
    (more / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shutil.rmtree(catalogue)  # the old pictures are not read again
    text = invoke("fit", more, "--add-to", out)
    assert "star" in text
    after = Statistics.load(out / "statistics_32x32.safetensors")
    assert after.class_names == ("round", "square", "star")
    assert after.counts == [before.counts[0], before.counts[1] + 2, 3]
    assert torch.equal(after.means[0], before.means[0])
    start = StartDistribution.from_pretrained(out / "start_distribution")
    assert start.class_names == ["round", "square", "star"]
    assert start.config["counts"] == after.counts
    file = out / "statistics_32x32.safetensors"
    file.write_bytes(file.read_bytes()[:4000])
    with pytest.raises(ValueError, match=r"statistics file .*statistics_32x32.safetensors must be readable"):
        invoke("fit", more, "--add-to", out)
    with pytest.raises(ValueError, match="--add-to must be the folder of an earlier fit, and alone, got "):
        invoke("fit", more, "--add-to", more)
    with pytest.raises(ValueError, match="and alone, got it beside --into or --output"):
        invoke("fit", more, "--add-to", out, "-o", tmp_path / "other")


def test_pictures_are_added_as_the_earlier_fit_was_made(
    tiny_base: Path, catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onbrand.pca import StartDistribution
    from onbrand.train import launch

    for i in range(12):
        Image.open(catalogue / f"{i:02d}.png").crop((8, 0, 72, 64)).save(catalogue / f"{i:02d}.png")
    out = tmp_path / "fit"
    common = [f"model.base={tiny_base}", "data.class_prefixes={round: a ball, square: a box}"]
    invoke("fit", catalogue, *common, "data.buckets=[[32, 48], [32, 32]]", "data.resolution=32", "-o", out)
    before = (out / "config.yaml").read_text()
    pages = {file.name for file in out.glob("*.html")}
    more = tmp_path / "shots #2"
    more.mkdir()
    Image.new("RGB", (64, 64), "red").save(more / "0.png")
    (more / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "new", "class": "round"}')
    order: list[str] = []
    start_accelerator = launch.start_accelerator
    monkeypatch.setattr(
        launch, "start_accelerator", lambda config: order.append("process") or start_accelerator(config)
    )
    monkeypatch.setattr("onbrand.commands.fit.best_device", lambda: order.append("device") or "cpu")
    invoke("fit", more, "--add-to", out)
    assert order == ["process", "device"]  # which device is best is another for each process
    assert (out / "config.yaml").read_text() == before
    assert {file.name for file in out.glob("*.html")} == pages
    start = StartDistribution.from_pretrained(out / "start_distribution")
    assert start.config["caption_prefixes"] == {"round": "a ball", "square": "a box"}
    assert f"{start.sizes[0][0] * 4} x {start.sizes[0][1] * 4}" in (out / "start.html").read_text()
    with pytest.raises(
        ValueError, match=r"overrides with --add-to must be among data.*, got 'start.components=3'"
    ):
        invoke("fit", more, "start.components=3", "--add-to", out)


def test_a_config_fitted_into_a_checkpoint_claims_no_training(tiny_base: Path, tmp_path: Path) -> None:
    from onbrand import load_pipeline

    config = tmp_path / "mine.yaml"
    config.write_text("data: {studio: {pictures: 80}}\nrun: {audit: {pictures: 2, steps: 2}}\n")
    out = tmp_path / "fitted"
    invoke("fit", config, "--into", tiny_base, "-o", out)
    fitted = load_pipeline(out).start_distribution.config
    assert (fitted["skip_interval"], fitted["offset_from"]) == (0, 1000)
    assert str(tiny_base) in (out / "fit" / "config.yaml").read_text()


def test_a_fit_killed_between_its_renames_is_put_back(
    tiny_base: Path, catalogue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "fit"
    invoke("fit", catalogue, f"model.base={tiny_base}", "-o", out)
    page = (out / "start.html").read_bytes()
    for rule, arguments in (
        ("output must be a new folder", ("--into", tiny_base, "-o", out)),
        ("got it beside --into or --output", ("--add-to", out, "-o", out)),
    ):
        out.rename(tmp_path / "fit.earlier")
        (tmp_path / "fit.partial").mkdir()
        with pytest.raises(ValueError, match=rule):
            invoke("fit", catalogue, *arguments)
        assert (out / "start.html").read_bytes() == page
        (tmp_path / "fit.partial").rmdir()


def test_fit_reads_a_config_and_its_family(tiny_base: Path, tmp_path: Path) -> None:
    from onbrand.pca import StartDistribution

    config = tmp_path / "mine.yaml"
    config.write_text(
        f"model: {{base: {tiny_base}}}\n"
        "data: {studio: {pictures: 80}}\n"
        "start: {family: text, components: 1}\n"
    )
    out = tmp_path / "fit"
    invoke("fit", config, "-o", out)
    start = StartDistribution.from_pretrained(out / "start_distribution")
    assert (start.family, start.offset_from) == ("text", 941)
    assert "of the variance of the K components, on captions left out" in (out / "start.html").read_text()
    with pytest.raises(
        ValueError, match="family must be one of pca, pooled, diagonal to add pictures, got text"
    ):
        invoke("fit", "photo-studio", "--add-to", out)


def test_errors_are_one_line_and_exit_status_2() -> None:
    command = [sys.executable, "-m", "onbrand", "train", "quickstart", "train.stepz=3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean steps?" in done.stderr
    assert "Traceback" not in done.stderr
