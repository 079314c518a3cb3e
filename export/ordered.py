"""Safetensors files whose bytes are the same for the same content: safetensors orders no header strings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ..whole_file import whole


def save_ordered(tensors: Mapping[str, Tensor], file: Path, *, metadata: Mapping[str, str]) -> None:
    """Writes the tensors beside the place of `file`, the header sorted, then renames it."""
    content = _serialised(tensors)
    start = _data_from(content)
    header = json.loads(bytes(content[8:start])) | {"__metadata__": dict(metadata)}
    text = json.dumps(header, sort_keys=True, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with whole(file) as beside, beside.open("wb") as written:
        for piece in (len(text).to_bytes(8, "little"), text, content[start:]):
            written.write(piece)


def data_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of a file's data, the header left out: what kohya's tools call the model hash."""
    content = _serialised(tensors)
    return hashlib.sha256(content[_data_from(content) :]).hexdigest()


def _serialised(tensors: Mapping[str, Tensor]) -> memoryview:
    return memoryview(save(dict(tensors)))


def _data_from(content: memoryview) -> int:
    return 8 + int.from_bytes(content[:8], "little")
