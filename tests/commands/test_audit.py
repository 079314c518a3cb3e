"""onbrand audit: what it writes and prints, and when it exits with 1."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from onbrand.__main__ import app
from onbrand.commands.audit import _settings_of_run
from onbrand.commands.folders import Fitted, captions_of, pictures_of, sizes_of
from onbrand.commands.judges import load_descriptor
from onbrand.evaluation import similarity
from onbrand.inference import generate, load_pipeline
from onbrand.pca import StartDistribution
from onbrand.train.stage import start_run
from PIL import Image, ImageDraw
from typer.testing import CliRunner

NAMES = ["a 'quoted' name.png", "sub/b & b.png", "[red]c[/].png"]


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["audit", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def draw(path: Path, *, backdrop: str = "white", wider: int = 0) -> None:
    image = Image.new("RGB", (80, 80), backdrop)
    ImageDraw.Draw(image).rectangle((22, 20, 58 + wider, 60), fill=(40 + 5 * wider, 60, 90))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """Twenty-four dark products on white."""
    for i in range(24):
        draw(tmp_path / "catalogue" / f"item {i:02d}.png", wider=i % 3)
    return tmp_path / "catalogue"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures as the catalogue's, the last on a red backdrop."""
    for name, backdrop in zip(NAMES, ("white", "white", "red"), strict=True):
        draw(tmp_path / "folder" / name, backdrop=backdrop)
    return tmp_path / "folder"


def test_a_folder_gets_numbers_limits_a_page_and_a_sheet(catalogue, folder, tmp_path) -> None:
    out = tmp_path / "audit"
    code, told = invoke(folder, "--against", catalogue, "-o", out)
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "audit.json",
        "limits.json",
        "report.html",
        "sheet.jpg",
    ]
    for name in ("audit.json", "report.html", "sheet.jpg"):
        assert str(out / name) in told
    found = {picture["name"]: picture for picture in json.loads((out / "audit.json").read_text())["pictures"]}
    assert sorted(found) == sorted(NAMES)
    assert "background" in [failure["rule"] for failure in found[NAMES[2]]["failures"]]
    page = (out / "report.html").read_text()
    for text in ("[red]c[/].png", "sub/b &amp; b.png", "The catalogue, for comparison", "256 x 256 pixels"):
        assert text in page
    assert page.count('alt="catalogue picture') == 8
    assert "wanted" not in page.split("<h2>Rules")[0].split("</style>")[1]


def test_too_few_passing_pictures_are_an_exit_status_and_a_line(catalogue, folder, tmp_path) -> None:
    arguments = (folder, "--against", catalogue, "-o", tmp_path / "audit", "--min-pass")
    passed = sum(not picture["failures"] for picture in _audited(tmp_path, invoke(*arguments, 0)))
    code, told = invoke(*arguments, 0.95)
    assert code == 1
    assert told.splitlines()[-1] == (f"pass rate {passed / 3:.2%} ({passed} of 3) is below the wanted 95.00%")
    assert "at least 95.0% pass" in (tmp_path / "audit" / "report.html").read_text()
    code, told = invoke(*arguments, passed / 3)
    assert code == 0
    assert "below" not in told


def _audited(folder: Path, result: tuple[int, str]) -> list[dict]:
    assert result[0] == 0
    return json.loads((folder / "audit" / "audit.json").read_text())["pictures"]


@pytest.mark.parametrize("rate", ["1.5", "-0.1", "nan", "95"])
def test_a_wanted_rate_that_is_no_share_is_refused_before_anything_is_measured(rate, tmp_path) -> None:
    out = tmp_path / "audit"
    with pytest.raises(ValueError, match=rf"--min-pass must be between 0 and 1, got {rate}"):
        invoke("no/such/folder", "--against", "nothing", "-o", out, "--min-pass", rate)
    assert not out.exists()


class Brightness(torch.nn.Module):
    """An SSCD of four numbers: the mean of each quarter of the height."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(1, 3)).reshape(x.shape[0], 4, -1).mean(dim=2) + 3


class Fake:
    """A CLIP whose features are a corner's red and green, and what a caption says of them."""

    name = "fake"

    def __call__(self, gallery):
        return torch.tensor([[value / 255 for value in p.getpixel((0, 0))[:2]] for p in gallery])

    def of_text(self, prompts):
        return torch.tensor([[0.5, 0.5] if "white" in prompt else [0.0, 1.0] for prompt in prompts])


@pytest.fixture
def fake_clip(monkeypatch) -> None:
    monkeypatch.setattr(similarity, "load_clip", lambda source, device: Fake())


def caption(folder: Path, texts: dict[str, str]) -> None:
    rows = [{"file_name": name, "text": text} for name, text in texts.items()]
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_a_file_is_an_sscd_descriptor_and_anything_else_is_clip(tmp_path) -> None:
    torch.jit.script(Brightness()).save(str(tmp_path / "sscd.pt"))
    assert load_descriptor(str(tmp_path / "sscd.pt")).name == "sscd.pt"
    with pytest.raises(ValueError, match="CLIP model must be a folder or a hub id, got "):
        load_descriptor(str(tmp_path))
    (tmp_path / "not.pt").write_text("no")
    with pytest.raises(ValueError, match="SSCD model must be a torchscript file, got "):
        load_descriptor(str(tmp_path / "not.pt"))


def test_a_descriptor_by_path_tells_the_kinds_apart(catalogue, folder, tmp_path) -> None:
    torch.jit.script(Brightness()).save(str(tmp_path / "sscd.pt"))
    arguments = (
        folder,
        "--against",
        catalogue,
        "--descriptor",
        tmp_path / "sscd.pt",
        "-o",
        tmp_path / "audit",
    )
    assert invoke(*arguments)[0] == 0
    kept = json.loads((tmp_path / "audit" / "limits.json").read_text())["reference"]["kind"]
    assert (kept["descriptor"], kept["mean"]["shape"]) == ("sscd.pt", [4])
    assert "kind of picture by" in (tmp_path / "audit" / "report.html").read_text()
    broken = {
        picture["name"]: [failure["rule"] for failure in picture["failures"]]
        for picture in json.loads((tmp_path / "audit" / "audit.json").read_text())["pictures"]
    }
    assert {name: "kind" in rules for name, rules in broken.items()} == {
        NAMES[0]: False, NAMES[1]: False, NAMES[2]: True,
    }  # fmt: skip


def test_captions_are_judged_by_a_clip_model(catalogue, folder, tmp_path, fake_clip) -> None:
    caption(catalogue, {path.name: "on white" for path in catalogue.glob("*.png")})
    caption(folder, dict.fromkeys(NAMES, "on white") | {NAMES[1]: "on grass"})
    code, told = invoke(folder, "--against", catalogue, "--clip", "some/clip", "-o", tmp_path / "audit")
    assert code == 0
    assert "by CLIP score by fake" in " ".join(told.replace("│", " ").split())
    report = json.loads((tmp_path / "audit" / "audit.json").read_text())
    text = {picture["name"]: picture["measures"]["text"] for picture in report["pictures"]}
    assert [text[name] for name in NAMES] == pytest.approx([1, 1, 0.5])
    assert report["rules"]["text"] == pytest.approx(2 / 3)
    assert report["text_agreement"]["reference"] == pytest.approx(1)
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "on grass" in page
    assert "captions scored by" in page


def test_what_has_no_captions_cannot_be_scored(catalogue, folder, tmp_path, fake_clip) -> None:
    arguments = (folder, "--against", catalogue, "--clip", "some/clip", "-o", tmp_path / "audit")
    with pytest.raises(ValueError, match=r"--clip needs a caption of every .* got none in '.*folder'"):
        invoke(*arguments)
    caption(folder, {NAMES[0]: "on white"})
    with pytest.raises(ValueError, match=r"--clip needs a caption .*, got none of '.*c.*' and 1 more"):
        invoke(*arguments)


def test_captions_are_also_the_prompts_that_sample_wrote(folder) -> None:
    files = [NAMES[0], "b & b.png", NAMES[2]]
    recipes = [{"file": file, "prompt": f"of {name}"} for file, name in zip(files, NAMES, strict=True)]
    (folder / "samples.json").write_text(json.dumps([recipes[0], recipes[2]]))
    (folder / "sub" / "samples.json").write_text(json.dumps([recipes[1]]))
    paths = [folder / name for name in NAMES]
    assert captions_of(folder, paths, column="text") == [f"of {name}" for name in NAMES]


def test_what_a_checkpoint_draws_is_scored_with_its_prompts(
    catalogue, tiny_base, tmp_path, fake_clip
) -> None:
    caption(catalogue, {path.name: f"on white {path.stem}" for path in catalogue.glob("*.png")})
    draws = ("data.resolution=32", "run.audit.pictures=2", "run.audit.steps=1")
    code, _ = invoke(
        tiny_base, *draws, "--against", catalogue, "--clip", "some/clip", "-o", tmp_path / "audit"
    )
    assert code == 0
    report = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert (report["n"], report["text_agreement"]["n"]) == (2, 2)
    assert report["text_agreement"]["reference"] > 0
    assert [picture["class"] for picture in report["pictures"]] == ["product"] * 2


def test_a_checkpoint_is_given_the_prefixes_that_it_was_taught(
    catalogue, tiny_base, tmp_path, monkeypatch
) -> None:
    pipeline = load_pipeline(tiny_base)
    side = pipeline.unet.config.sample_size
    start = StartDistribution.fit(
        torch.randn(4, 4, side, side), torch.zeros(4, dtype=torch.long), class_names=["product"],
        caption_prefixes={"product": "our best"},
    )  # fmt: skip
    pipeline.set_start_distribution(start)
    pipeline.save_pretrained(tmp_path / "taught")
    told = []
    plain = generate.generate
    monkeypatch.setattr(
        "onbrand.train.draw.generate",
        lambda pipe, texts, **how: told.extend(texts) or plain(pipe, texts, **how),
    )
    draws = ("run.audit.pictures=2", "run.audit.steps=1")
    for more in ((), ("data.class_prefixes={product: an}",)):
        invoke(
            tmp_path / "taught", *draws, *more, "--against", catalogue, "-o", tmp_path / f"audit{len(more)}"
        )
    assert [text.split(", item")[0] for text in told] == ["our best"] * 2 + ["an"] * 2


def test_a_catalogue_needs_no_captions(catalogue, folder, tmp_path) -> None:
    for i, path in enumerate(sorted(catalogue.glob("*.png"))):
        path.rename(catalogue / f"{i:02d}.png")
    catalogue.rename(tmp_path / "00")  # neither file nor folder says a word
    invoke(folder, "--against", tmp_path / "00", "-o", tmp_path / "audit")
    assert json.loads((tmp_path / "audit" / "limits.json").read_text())["n"] == 24
    # nor a column of them beside its file names
    rows = [json.dumps({"file_name": f"{i:02d}.png", "sku": i}) for i in range(23)]
    (tmp_path / "00" / "metadata.jsonl").write_text("\n".join(rows))
    invoke(folder, "--against", tmp_path / "00", "-o", tmp_path / "audit")
    assert json.loads((tmp_path / "audit" / "limits.json").read_text())["n"] == 23


def test_pictures_of_the_catalogue_that_are_left_out_are_told(catalogue, folder, tmp_path) -> None:
    (catalogue / "broken.png").write_bytes(b"no picture")
    told = invoke(folder, "--against", catalogue, "-o", tmp_path / "audit")[1]
    line = "note: pictures of the catalogue were left out: 1 no known image format (the first is broken.png)"
    assert told.splitlines().count(line) == 1
    assert "left out of the catalogue" in (tmp_path / "audit" / "report.html").read_text()
    for path in catalogue.glob("item*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="must hold a usable picture, got 1 unusable ones"):
        invoke(folder, "--against", catalogue, "-o", tmp_path / "audit")


def test_a_catalogue_that_disagrees_is_told_in_one_plain_line(catalogue, folder, tmp_path) -> None:
    for i in range(24):
        draw(catalogue / f"[grey] {i}.png", backdrop="#a0a0a0", wider=i % 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left for Python to print
        told = invoke(folder, "--against", catalogue, "-o", tmp_path / "audit")[1]
    (line,) = [line for line in told.splitlines() if line.startswith("note: ")]
    assert line.startswith("note: reference pictures disagree on background: 24 pictures at Lab (")
    assert "UserWarning" not in told


def test_an_empty_folder_and_a_file_that_is_no_picture_are_named(catalogue, folder, tmp_path) -> None:
    arguments = ("--against", catalogue, "-o", tmp_path / "audit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"folder must hold pictures \(.*\), got none in '.*empty'"):
        invoke(tmp_path / "empty", *arguments)
    (folder / "ü 日本.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"picture '.*ü 日本\.png' must be readable, got cannot identify"):
        invoke(folder, *arguments)
    Image.new("F", (40, 40)).save(folder / "ü 日本.tif")
    (folder / "ü 日本.png").unlink()
    with pytest.raises(ValueError, match=r"picture '.*ü 日本\.tif' must be readable, got float pixels"):
        invoke(folder, *arguments)
    Image.new("RGB", (80, 80)).resize((4, 4)).save(folder / "ü 日本.png")
    (folder / "ü 日本.tif").unlink()
    with pytest.raises(ValueError, match=r"ü 日本\.png' must have 8 x 8 pixels to measure"):
        invoke(folder, *arguments)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_fine_pixels_with_a_damaged_exif_block_are_audited(kind, catalogue, folder, tmp_path) -> None:
    for path in (folder / NAMES[0], catalogue / "item 00.png"):
        Image.open(path).save(path, kind, exif=b"Exif\0\0" + bytes(20))
    assert len(_audited(tmp_path, invoke(folder, "--against", catalogue, "-o", tmp_path / "audit"))) == 3
    assert json.loads((tmp_path / "audit" / "limits.json").read_text())["n"] == 24


def test_pictures_of_the_catalogue_too_small_to_measure_are_left_out(catalogue, folder, tmp_path) -> None:
    for name, size in {"icon": (4, 4), "strip": (400, 11)}.items():
        Image.new("RGB", size).save(catalogue / f"{name}.png")
    told = invoke(folder, "--against", catalogue, "-o", tmp_path / "audit")[1]
    counts = "2 with fewer than 8 x 8 pixels to measure (the first is icon.png)"
    assert f"note: pictures of the catalogue were left out: {counts}" in told.splitlines()
    assert json.loads((tmp_path / "audit" / "limits.json").read_text())["n"] == 24
    for path in catalogue.glob("item*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="must hold a usable picture, got 2 unusable ones"):
        invoke(folder, "--against", catalogue, "-o", tmp_path / "audit")


@pytest.mark.parametrize("size", [(600, 1), (4, 4), (400, 11)])
def test_a_picture_too_small_to_measure_is_named(catalogue, folder, tmp_path, size) -> None:
    Image.new("RGB", size).save(folder / "line.gif")
    with pytest.raises(ValueError, match=rf"line.gif' must have 8 x 8 .*, got {size[0]} x {size[1]}"):
        invoke(folder, "--against", catalogue, "-o", tmp_path / "audit")


def test_pictures_as_browsers_save_them_are_judged(catalogue, folder, tmp_path) -> None:
    (folder / NAMES[0]).rename(folder / "saved.jfif")
    invoke(folder, "--against", catalogue, "-o", tmp_path / "audit")
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["n"] == 3


def test_a_run_that_is_not_finished_is_no_folder_of_pictures(catalogue, folder, tmp_path) -> None:
    for name in ("config.yaml", "inputs.json"):
        (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=r"run must be finished: .*model must exist"):
        invoke(folder, "--against", catalogue, "-o", tmp_path / "audit")


def test_a_run_is_judged_by_what_it_held_out(make_config, tmp_path) -> None:
    """Settings of its own, for the catalogue that it was trained on alone."""
    config = make_config(run__seed=7, data__held_out=0.2, data__studio__pictures=50)
    start_run(config)
    model, source = str(Path(config.run.dir) / "model"), config.data.source
    known = _settings_of_run(model, source)
    assert known["run"] == {"seed": 7}
    assert (known["data"]["held_out"], known["data"]["studio"]["pictures"]) == (0.2, 50)
    assert not {"source", "cache_dir"} & set(known["data"])
    assert known["model"] == {}
    assert _settings_of_run(model, "another") == {}
    assert _settings_of_run(str(tmp_path / "model"), source) == {}


def test_an_output_that_is_a_file_is_refused_before_anything_is_measured(tmp_path) -> None:
    (tmp_path / "audit").write_text("mine")
    with pytest.raises(ValueError, match=r"--output must be a folder, got the file .*audit"):
        invoke("no/such/folder", "--against", "nothing", "-o", tmp_path / "audit")


def test_pictures_that_commands_wrote_to_be_read_are_not_audited(folder, tmp_path) -> None:
    for place in (folder, folder / "audit", folder / "earlier", folder / "sub"):
        draw(place / "sheet.jpg")
    (folder / "earlier" / "audit.json").write_text("{}")
    (folder / "sub" / "samples.json").write_text("[]")
    for name in ("trace.png", "layout.jpg", "attention.jpg"):
        draw(folder / "sub" / name)
    names = [path.relative_to(folder).as_posix() for path in pictures_of(folder, output=folder / "audit")]
    assert names == sorted([*NAMES, "sheet.jpg"])  # a sheet of nobody is a picture
    with pytest.raises(ValueError, match="folder must hold pictures beside contact sheets, got none in "):
        pictures_of(folder / "audit", output=folder / "audit")


def test_sizes_are_those_of_upright_pictures(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "b.jpg")
    assert list(sizes_of([tmp_path / "a.jpg", tmp_path / "b.jpg"])) == [(20, 30), (30, 20)]


def test_pictures_are_opened_when_they_are_asked_for() -> None:
    asked = []
    pictures = Fitted(lambda i: asked.append(i) or i, 5, lambda picture, side: picture * side, 2)
    assert (len(pictures), pictures[3], pictures[1:3], asked) == (5, 6, [2, 4], [3, 1, 2])
    assert list(pictures) == [0, 2, 4, 6, 8]
    with pytest.raises(IndexError):
        pictures[5]
