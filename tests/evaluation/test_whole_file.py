"""Text files that are there whole or not at all."""

from pathlib import Path

import pytest
from onbrand.evaluation.whole_file import write_whole


def test_a_file_is_written_beside_and_renamed(tmp_path, monkeypatch) -> None:
    path = tmp_path / "new" / "page.html"
    assert write_whole("a \udcff ü", str(path)) == path
    assert path.read_bytes() == "a ? ü".encode()
    assert list(path.parent.iterdir()) == [path]

    def full(self: Path, *given: object, **named: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole("b", path)
    assert path.read_bytes() == "a ? ü".encode()
