"""Files and folders that are there whole or not at all."""

from contextlib import suppress
from pathlib import Path

import pytest
from onbrand.evaluation.whole_file import recover, whole, write_whole


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
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_earlier_one_gives_way_to_a_whole_one_alone(tmp_path: Path, kind: str) -> None:
    def write(place: Path, text: str) -> None:
        if kind == "folder":
            place.mkdir()
        (place / "part" if kind == "folder" else place).write_text(text)

    def read() -> str:
        return (path / "part" if kind == "folder" else path).read_text()

    path = tmp_path / "new" / "model"
    left = tmp_path / "new" / "model.partial"
    left.mkdir(parents=True)
    (left / "other").write_text("by a writer that was killed")
    for text in ("first", "second"):
        with whole(path) as beside:
            write(beside, text)
            assert beside == left
        assert read() == text
    with suppress(OSError), whole(path) as beside:
        write(beside, "third")
        raise OSError("disk full")
    assert read() == "second"
    assert list(path.parent.rglob("*")) == ([path, path / "part"] if kind == "folder" else [path])
    if kind == "folder":
        path.rename(path.with_name("model.earlier"))  # killed here
        recover(path)
        assert read() == "second"
        recover(path)
        with suppress(FileNotFoundError), whole(path):
            pass  # nothing to put in its place
        assert read() == "second"
