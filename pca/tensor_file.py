"""Named tensors in safetensors files that are there whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..whole_file import whole


def read_tensors(path: str | os.PathLike[str], *, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors and its metadata.

    Raises FileNotFoundError, and ValueError with the file's role on one that cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{what} {path} must be readable, got {error}") from error


def write_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes a safetensors file as `write_whole` writes text; several processes may at a time."""
    with whole(path, shared=True) as beside:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            beside,
            metadata=None if metadata is None else dict(metadata),
        )
    return Path(path)
