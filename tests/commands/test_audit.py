"""onbrand audit: what it writes and prints, and when it exits with 1."""

import json
from pathlib import Path

import pytest
from onbrand.__main__ import app
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
