"""Who may import whom (the house rules), read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import onbrand
import pytest

ROOT = Path(onbrand.__file__).parent
ALLOWED = {
    "pca": set(),
    "configs": set(),
    "data": {"pca"},
    "evaluation": {"pca"},
    "inference": {"pca", "evaluation"},
    "export": {"pca", "inference", "evaluation"},
    "train": {"data", "pca", "inference", "evaluation", "export", "configs"},
    "commands": {"data", "pca", "inference", "evaluation", "export", "configs", "train"},
}
CONFIG_READERS = {"train", "commands"}


def imports_of(file: Path) -> set[str]:
    """The sub-packages of ours that a file imports, at any depth of its code."""
    package = file.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            target = (*base, *(node.module or "").split(".")) if node.module else base
            found |= {target[0]} if target and target[0] else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "onbrand":
            found.add(f"{node.module}.".split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {f"{a.name}.".split(".")[1] for a in node.names if a.name.split(".")[0] == "onbrand"}
    return found - {""}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_they_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        extra = imports_of(file) - ALLOWED[package] - {package, "whole_file"}
        assert not extra, f"{file.relative_to(ROOT)} imports {sorted(extra)}"


def test_the_command_line_reaches_only_commands() -> None:
    assert imports_of(ROOT / "__main__.py") == {"commands"}


def test_a_forbidden_import_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "pca").mkdir()
    file = tmp_path / "pca" / "bad.py"
    file.write_text("def f():\n    from ..train.loop import train\n    from . import own\n")
    assert imports_of(file) == {"train", "pca"}


@pytest.mark.parametrize("arguments", [["-c", "import onbrand"], ["-m", "onbrand", "--help"]])
def test_starting_is_light(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "onbrand" in loaded or "-m" in arguments
    assert not loaded & {"torch", "diffusers", "transformers", "datasets", "pydantic"}
