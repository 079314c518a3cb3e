"""Files and folders that are there whole or not at all."""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: str | os.PathLike[str], *, shared: bool = False) -> Iterator[Path]:
    """Gives a place beside `path` to write a file or folder at, renamed to `path` when the block ends well.

    One that fails leaves `path` as it was. The folders above are made, what a killed writer left is removed,
    and all of it is on the disk, with the permissions that new files have there, before it is renamed.
    shared: several may write at a time, each at a place of its own, where a killed one's file stays.
    Raises IsADirectoryError on a file in the place of a folder.
    """
    path = Path(path).absolute()
    own = f".{os.getpid()}-{secrets.token_hex(4)}" if shared else ""
    beside = path.with_name(f"{path.name}{own}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    _remove(beside)
    try:
        yield beside
        settle(beside)
        _put_in_place(beside, path)
    finally:
        recover(path)
        with suppress(OSError):
            _remove(beside)


def recover(path: str | os.PathLike[str]) -> None:
    """Puts an earlier folder back where a writer was killed between the two renames of `whole`."""
    path = Path(path).absolute()
    if not path.exists() and path.with_name(f"{path.name}.partial").exists():
        with suppress(FileNotFoundError):  # there is none, or another process has put it back
            _earlier(path).rename(path)


def write_whole(text: str, path: str | os.PathLike[str]) -> Path:
    """Writes UTF-8 beside `path`, then renames, so that no half-written file is ever seen; returns the path.

    Folders are made as needed. Lone surrogates, as a file name that is no text has, are written as "?".
    """
    with whole(path, shared=True) as beside:
        beside.write_text(text, encoding="utf-8", errors="replace")
    return Path(path)


def settle(path: Path) -> None:
    """Waits until a file, or every file of a folder, is on the disk: no rename may outrun what it names.

    They get the permissions that new files have there: safetensors' own are for their owner alone.
    """
    files = [path] if path.is_file() else path.rglob("*")
    usual = _usual_mode(path.parent)
    for file in files:
        if file.is_symlink() or not file.is_file():
            continue
        if stat.S_IMODE(file.stat().st_mode) != usual:
            file.chmod(usual)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def _usual_mode(folder: Path) -> int:
    """The permissions of a new file in a folder: the umask cannot be read without being changed."""
    probe = folder / f".{os.getpid()}-{secrets.token_hex(4)}.probe"
    probe.touch()
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


def _put_in_place(beside: Path, path: Path) -> None:
    if not (beside.is_dir() and path.is_dir()):
        beside.replace(path)
        return
    earlier = _earlier(path)  # a folder gives way to no rename
    _remove(earlier)
    path.rename(earlier)
    beside.replace(path)
    with suppress(OSError):
        _remove(earlier)


def _earlier(path: Path) -> Path:
    return path.with_name(f"{path.name}.earlier")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
