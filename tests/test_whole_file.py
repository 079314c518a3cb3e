"""Files and folders that are there whole or not at all."""

import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from onbrand.pca.tensor_file import read_tensors, write_tensors
from onbrand.whole_file import recover, whole, write_whole


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


def test_a_folder_is_put_back_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    path, earlier, beside = (tmp_path / name for name in ("fit", "fit.earlier", "fit.partial"))
    for folder, text in ((earlier, "first"), (beside, "second")):
        folder.mkdir()
        (folder / "part").write_text(text)
    recover(path)
    assert (path / "part").read_text() == "first"
    assert not earlier.exists()
    with suppress(FileNotFoundError), whole(path):
        pass  # nothing to put in its place
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["fit", "fit/part"]
    path.rename(earlier)  # by hand: nothing was being written
    recover(path)
    assert not path.exists()


def test_a_file_takes_no_folders_place(tmp_path: Path) -> None:
    (tmp_path / "brand").mkdir()
    (tmp_path / "brand" / "logo").write_text("kept")
    with pytest.raises(IsADirectoryError):
        write_whole("limits", tmp_path / "brand")
    assert [path.name for path in tmp_path.rglob("*")] == ["brand", "logo"]


def test_a_link_to_a_folder_gives_way_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "real")
    for _ in range(2):
        with whole(tmp_path / "model") as beside:
            beside.mkdir()
    assert not (tmp_path / "model").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "real"]


def test_several_write_the_same_text_file(tmp_path: Path) -> None:
    texts = [str(number) * 50_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for path in pool.map(lambda text: write_whole(text, tmp_path / "limits.json"), texts * 20):
            assert path.read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["limits.json"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_library_wrote_for_its_owner_alone_gets_the_permissions_of_any_new_file(
    tmp_path: Path, kind: str
) -> None:
    path, place = tmp_path / "model", tmp_path / "model"
    if kind == "folder":
        place = path / "unet" / "weights"
    before = os.umask(0o027)
    try:
        with whole(path) as beside:
            written = beside if kind == "file" else beside / "unet" / "weights"
            written.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(written, os.O_CREAT | os.O_WRONLY, 0o600))
        assert stat.S_IMODE(place.stat().st_mode) == 0o640
        write_tensors({"a": torch.ones(2, 3).T}, tmp_path / "tensors", {"told": "so"})
        assert stat.S_IMODE((tmp_path / "tensors").stat().st_mode) == 0o640
    finally:
        os.umask(before)
    assert os.umask(before) == before
    tensors, told = read_tensors(tmp_path / "tensors", what="tensors")
    assert (tensors["a"].shape, told) == ((3, 2), {"told": "so"})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "tensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_what_a_link_leads_to_keeps_its_permissions(tmp_path: Path) -> None:
    outside = tmp_path / "base"
    outside.write_text("of somebody else")
    outside.chmod(0o600)
    with whole(tmp_path / "model") as beside:
        beside.mkdir()
        (beside / "base").symlink_to(outside)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600


def test_nothing_is_renamed_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append((tmp_path / "model").exists()))
    with whole(tmp_path / "model") as beside:
        beside.mkdir()
        for name in "ab":
            (beside / name).write_text(name)
    assert synced == [False, False]
