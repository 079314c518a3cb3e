"""`onbrand compare`: two checkpoints, the same prompts and noises."""

import json
from pathlib import Path

import numpy as np
import pytest
from onbrand.__main__ import app
from onbrand.evaluation.thumbnails import Thumbnails
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


def test_what_cannot_be_compared_is_refused(tmp_path: Path, prompts: Path) -> None:
    refused(
        "prompts must come by --prompts or --catalogue for tiny-base, got neither", "tiny-base", "tiny-base"
    )
    refused("--pictures must be at least 4, got 3", "tiny-base", "tiny-base", "--pictures", 3)


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
