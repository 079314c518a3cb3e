"""`onbrand compare`: two checkpoints, the same prompts and noises."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onbrand.__main__ import app
from onbrand.commands.compare import Asked, _asked, _check_classes, _frame, _open
from onbrand.data.transform import ImageTransform
from onbrand.evaluation.thumbnails import Thumbnails
from onbrand.inference import OffsetStableDiffusionPipeline
from onbrand.pca import StartDistribution
from PIL import Image
from typer.testing import CliRunner

PROMPTS = "a red mug\na blue shoe\na green hat\n"


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(match: str, *arguments: object) -> None:
    with pytest.raises(ValueError, match=match):
        CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text(PROMPTS)
    return file


def test_a_checkpoint_draws_what_it_draws(tmp_path: Path, prompts: Path) -> None:
    out = tmp_path / "out"
    said = invoke("tiny-base", "tiny-base", "--prompts", prompts, "--pictures", 6, "--steps", 2, "-o", out)
    assert "counts as the same picture" in said
    report = json.loads((out / "compare.json").read_text())
    assert report["scores"]["RP"]["value"] == 1.0
    assert report["scores"]["RP"]["n"] == 6
    np.testing.assert_allclose(report["cosines"], 1.0, atol=1e-5)
    page = (out / "compare.html").read_text()
    assert "the two draw the same picture in 100% of cases" in page
    assert page.count("data:image/jpeg") == 2 * 2 * 6
    assert "http" not in page


def test_what_is_drawn_is_looked_for_in_the_catalogue(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue" / "mug"
    catalogue.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (64, 64), (80 * i, 40, 200 - 60 * i)).save(catalogue / f"{i}.png")
    call = ("tiny-base", "tiny-base", "--catalogue", catalogue.parent, "--pictures", 4, "--steps", 2)
    invoke(*call, "--threshold", 0.999, "-o", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["scores"]["GL of tiny-base"]["value"] == 1.0
    assert report["facts"]["catalogue"].endswith("3 pictures")
    assert "a cosine above 0.999" in report["facts"]["same picture"]


def test_what_cannot_be_compared_is_refused_before_anything_is_loaded(
    tmp_path: Path, prompts: Path, monkeypatch
) -> None:
    two = ("tiny-base", "tiny-base", "--prompts", prompts)
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("onbrand.commands.compare._models", lambda *names: pytest.fail("loaded"))
    refused("--pictures must be at least 4, got 3", *two, "--pictures", 3)
    refused("--threshold must be a cosine between -1 and 1, got 2", *two, "--threshold", 2)
    refused(r"--output must be a folder, got the file .*file", *two, "-o", tmp_path / "file")
    refused("CLIP model must be a folder or a hub id, got ", *two, "--descriptor", tmp_path / "typo")
    monkeypatch.undo()
    refused("prompts must come by --prompts or --catalogue for tiny-base, got neither", *two[:2])


def model(tiny, *, size: tuple[int, int] | None, **transform: str) -> OffsetStableDiffusionPipeline:
    """A pipeline of two classes whose catalogue was fitted to (height, width), a plain one of 32 for None."""
    start = None
    if size is not None:
        latents = torch.randn(8, 4, size[0] // 4, size[1] // 4, generator=torch.Generator().manual_seed(0))
        start = StartDistribution.fit(
            latents,
            torch.arange(8) % 2,
            class_names=["mug", "shoe"],
            caption_prefixes={"mug": "our mug", "shoe": ""},
            image_transform=ImageTransform(*size, **transform).to_dict(),
        )
    return OffsetStableDiffusionPipeline(**tiny.make_components(), start_distribution=start)


def test_models_draw_at_one_size_or_not_at_all(tiny) -> None:
    wide, small, plain = (model(tiny, size=size) for size in ((32, 64), (16, 16), None))
    assert _frame({"wide": wide, "plain": plain}) == (32, 64)
    assert _frame({"plain": plain, "wide": wide}) == (32, 64)
    assert _frame({"plain": plain}) == (32, 32)
    with pytest.raises(ValueError, match=r"one shape, got 4 x 8 x 16 for wide and 4 x 4 x 4 for small"):
        _frame({"wide": wide, "small": small})
    small.start_distribution.add_bucket(wide.start_distribution)
    assert _frame({"small": small, "wide": wide}) == (32, 64)


def test_a_catalogue_is_framed_and_captioned_as_the_model_was_taught(tiny, tmp_path: Path) -> None:
    for name in ("mug", "shoe"):
        (tmp_path / name).mkdir()
        Image.linear_gradient("L").resize((40, 24)).save(tmp_path / name / f"a red {name}.png")
    models = {
        "crop": model(tiny, size=(32, 64), fit="crop", backdrop="red"),
        "pad": model(tiny, size=(16, 16), fit="pad", backdrop="red"),
        "plain": model(tiny, size=None),
    }
    shown = _open(str(tmp_path), models)
    assert shown["plain"] is shown["crop"]
    for name, transform in {
        "crop": ImageTransform(32, 64, fit="crop"),
        "pad": ImageTransform(16, 16, fit="pad", backdrop="red"),
    }.items():
        taught = transform.resize(Image.open(tmp_path / "mug" / "a red mug.png"))
        assert np.array_equal(shown[name].image(0), taught)
    asked = _asked(models["crop"], "crop", shown["crop"], prompts=None, count=2)
    assert asked == [("our mug, a red mug", "mug"), ("a red shoe", "shoe")]
    asked = _asked(models["crop"], "crop", None, prompts=None, count=2)
    assert asked == [("our mug", "mug"), ("a shoe", "shoe")]


def test_prompts_of_classes_that_a_model_lacks_are_refused_before_any_is_drawn(tiny) -> None:
    known = model(tiny, size=(16, 16))
    _check_classes(
        known, [Asked("a red one", "mug"), Asked("our mug, red", None)], "old", height=16, width=16
    )
    with pytest.raises(ValueError, match=r"^old: class"):
        _check_classes(known, [Asked("a red hat", "hat")], "old", height=16, width=16)


def test_thumbnails_tell_pictures_apart_and_know_a_smaller_copy() -> None:
    drawn = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one).resize((64, 64), Image.Resampling.BICUBIC) for one in drawn]
    describe = Thumbnails(pictures)
    features = describe(pictures)
    copies = describe([picture.resize((48, 48), Image.Resampling.BOX) for picture in pictures])
    alike = (features @ copies.T).numpy()
    assert (np.diag(alike) > 0.95).all()
    assert alike[~np.eye(4, dtype=bool)].max() < 0.3
    with pytest.raises(ValueError, match="reference must be at least one picture, got none"):
        Thumbnails([])
