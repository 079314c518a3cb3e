"""What the documentation points to exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r'\]\(([^)\s#]+)(?:#[\w-]+)?(?: "(\w+)")?\)')


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_to_tests_of_that_name(page: Path) -> None:
    for target, test in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        file = page.parent / target
        assert file.exists(), target
        if test:
            assert f"def {test}(" in file.read_text(), (target, test)


def test_docstrings_cite_headings_of_the_methods() -> None:
    """As `METHODS 1, "Training"`; equations are the paper's."""
    lines = (ROOT / "docs/METHODS.md").read_text().splitlines()
    headings = {line.lstrip("# ") for line in lines if line.startswith("#")}
    cited: list[str] = []
    for file in sorted(file for folder in ("train", "pca") for file in (ROOT / folder).glob("*.py")):
        text = " ".join(file.read_text().split())
        assert not re.findall(r'METHODS \d, (?!"|eq\.).{20}', text), file
        for quoted in re.findall(r'METHODS \d, ("[^"]*"(?: and "[^"]*")?)', text):
            cited += re.findall(r'"([^"]*)"', quoted)
    assert len(cited) > 5
    assert set(cited) <= headings


def test_the_feature_table_shows_a_test_for_each_yes() -> None:
    rows = [line for line in (ROOT / "docs/trainers.md").read_text().splitlines() if line.count("|") == 8]
    claims = [row.split("|")[7].strip() for row in rows]
    claims = [claim for claim in claims if claim not in ("onbrand", "---", "") and "part" not in claim]
    assert len(claims) > 40
    assert all(LINK.search(claim) for claim in claims), claims
