"""A learned coupling as a file: the matrix that mixes a gallery's noise, and what it was learned from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Generator, Tensor

from ..pca.tensor_file import read_tensors, write_tensors
from .coupling_matrix import unit_rows
from .couplings import FromMatrix

FORMAT_VERSION = 1
VERSION_KEY, STORY_KEY = "learned_coupling_version", "learned_coupling"


@dataclass(frozen=True, eq=False)
class LearnedCoupling:
    """An initializer whose noise is eps = A z for galleries of N pictures, A learned for a reward.

    matrix: A (N, M), float64 on the CPU, rows of unit norm, so that each noise stays standard normal.
    reward: its name; base_model: what it was learned on (it may serve others); prompts: sha256 of the
    prompts, `prompts_fingerprint`; history: the reward at every step; settings: of the learning, as JSON.
    Raises ValueError on other rows.
    """

    matrix: Tensor
    reward: str
    base_model: str = ""
    prompts: str = ""
    history: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", unit_rows(self.matrix))

    def draw(self, num_images: int, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
        """Noise (N, *shape), float32 on the CPU. Raises ValueError unless num_images is N."""
        return FromMatrix(self.matrix).draw(num_images, shape, generator)

    @property
    def correlation(self) -> Tensor:
        """A A^T (N, N), float64: how the noises of two pictures correlate."""
        return self.matrix @ self.matrix.T

    def save(self, path: str | os.PathLike) -> None:
        """Writes one safetensors file, whole or not at all."""
        story = {
            "reward": self.reward,
            "base_model": self.base_model,
            "prompts": self.prompts,
            "history": list(self.history),
            "settings": dict(self.settings),
        }
        metadata = {VERSION_KEY: str(FORMAT_VERSION), STORY_KEY: json.dumps(story)}
        write_tensors({"matrix": self.matrix}, path, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> LearnedCoupling:
        """Reads what `save` wrote, the matrix equal to the bit.

        Raises ValueError on any other file, FileNotFoundError on none.
        """
        tensors, metadata = read_tensors(path, what="learned coupling")
        version = metadata.get(VERSION_KEY, "")
        if version.isdigit() and int(version) > FORMAT_VERSION:
            raise ValueError(
                f"learned coupling {path} must be of version {FORMAT_VERSION} at most, got {version}"
            )
        if not version.isdigit() or set(tensors) != {"matrix"}:
            got = f"{sorted(tensors)} of version {version!r}"
            raise ValueError(f"learned coupling {path} must hold a learned matrix, got {got}")
        story = _story(metadata.get(STORY_KEY, ""), path)
        try:
            return cls(tensors["matrix"], **story)
        except ValueError as error:
            raise ValueError(f"learned coupling {path} must be usable: {error}") from error


def prompts_fingerprint(prompts: Sequence[str]) -> str:
    """sha256 of these prompts in this order."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def _story(text: str, path: str | os.PathLike) -> dict[str, Any]:
    """The fields beside the matrix; Raises ValueError unless all are there and of their type."""
    types = {"reward": str, "base_model": str, "prompts": str, "history": list, "settings": dict}
    try:
        told = json.loads(text)
        story = {name: told[name] for name in types}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"learned coupling {path} must tell {', '.join(types)}, got {type(error).__name__}: {error}"
        ) from error
    for name, kind in types.items():
        if not isinstance(story[name], kind):
            got = type(story[name]).__name__
            raise ValueError(f"learned coupling {path} must tell {name} as {kind.__name__}, got {got}")
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in story["history"]):
        raise ValueError(f"learned coupling {path} must tell history in finite numbers, got others")
    return story | {"history": tuple(story["history"])}
