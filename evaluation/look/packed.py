"""Arrays as text inside JSON."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def pack(array: np.ndarray) -> dict[str, Any]:
    """Type, shape and compressed values of an array; `unpack` gives it back exactly."""
    values = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    text = base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()
    return {"dtype": values.dtype.str, "shape": list(array.shape), "zlib": text}


def unpack(stored: Mapping[str, Any]) -> np.ndarray:
    """The array that `pack` wrote; Raises ValueError when its values do not fill its shape."""
    values = np.frombuffer(zlib.decompress(base64.b64decode(stored["zlib"])), dtype=stored["dtype"])
    if values.size != np.prod(stored["shape"], dtype=np.int64):
        raise ValueError(f"packed array must hold {stored['shape']} values, got {values.size}")
    return values.reshape(stored["shape"])
