"""Passes over pictures: class by class, shared out over processes, with what is finished kept in a folder."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .float64 import float64_device
from .tensor_file import write_tensors

Batch = tuple[Tensor, Tensor]
ROWS_AT_ONCE = 1024
CHUNK_BYTES = 2**25  # of a chunk in float64


def chunk_rows(d: int) -> int:
    """How many pictures of d values are worked on at a time."""
    return max(1, min(ROWS_AT_ONCE, CHUNK_BYTES // (8 * max(1, d))))


class Processes(Protocol):
    """The processes of a run, each with its own share of the pictures; `data.processes` has one."""

    @property
    def index(self) -> int:
        """This process's number."""

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def gather(self) -> Callable[[list], list]:
        """Every process's list, joined in the order of their numbers, on all of them."""


class Together:
    """What processes know together; one process if None."""

    def __init__(self, processes: Processes | None) -> None:
        self._processes = processes
        self.index, self.count = (0, 1) if processes is None else (processes.index, processes.count)

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return self.count > 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, where the tensor lies."""
        if self._processes is None or self.count == 1:
            return tensor
        total, *others = self._processes.gather([tensor.cpu()])
        return sum(others, start=total).to(tensor.device)

    def first(self, tensor: Tensor) -> Tensor:
        """The tensor of the first process, so that rounding does not part them."""
        return self.sum(tensor if self.index == 0 else torch.zeros_like(tensor))

    def before(self, own: Tensor) -> Tensor:
        """The sum of own (k,) over the processes before this one."""
        table = own.new_zeros(self.count, len(own))
        table[self.index] = own
        return self.sum(table)[: self.index].sum(dim=0)


class Pictures:
    """This process's pictures, as `fit_statistics` takes them."""

    def __init__(
        self,
        latents: Tensor | Iterable[Batch],
        class_ids: Tensor | None,
        *,
        class_names: Sequence[str],
        device: str | torch.device,
        name_of: Callable[[int], str] | None,
    ) -> None:
        self.class_names = class_names
        self.device = float64_device(device)
        self.shape = torch.Size()
        self._source: Any = _as_batches(latents, class_ids)
        self._name_of = name_of

    def selective(self, together: Together) -> bool:
        """Whether the sources of all processes can be asked for some classes alone."""
        can = torch.tensor([int(hasattr(self._source, "of"))])
        return int(together.sum(can)) == together.count

    def walk(self, classes: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """(class id, rows (m, d) on the device) of these classes, in chunks."""
        batches = self._source.of(classes) if hasattr(self._source, "of") else self._source
        for x, ids in batches:
            yield from self._chunks(x.detach(), ids.cpu(), set(classes))

    def check_and_walk(self) -> Iterator[tuple[int, Tensor]]:
        """The first pass, over all classes. Raises ValueError on what `fit_statistics` refuses."""
        position, everything = 0, set(range(len(self.class_names)))
        for x, ids in self._source:
            x, ids = x.detach(), ids.cpu()
            self.shape = self.shape or x.shape[1:]
            self._check(x, ids, position)
            position += len(x)
            yield from self._chunks(x, ids, everything)

    def common_shape(self, together: Together, problem: Exception | None) -> torch.Size:
        """(C, H, W) of the latents in all processes. problem: what ended the first pass here, raised now."""
        known = [1, *self.shape] if self.shape else [0, 0, 0, 0]
        failed, known, *total = together.sum(torch.tensor([int(problem is not None), *known])).tolist()
        if problem is not None:
            raise problem
        if failed:
            raise ValueError(f"latents must be readable in all processes, got errors in {failed} others")
        if known == 0:
            raise ValueError("latents must hold at least one picture, got none")
        common = torch.Size(side // known for side in total)
        if self.shape and self.shape != common:
            got = tuple(self.shape)
            raise ValueError(f"latents must share one shape, got {got} and others in other processes")
        return common

    def _chunks(self, x: Tensor, ids: Tensor, classes: set[int]) -> Iterator[tuple[int, Tensor]]:
        size = chunk_rows(x.shape[1:].numel())
        present = ids.unique().tolist()
        for c in classes.intersection(present):
            rows = x if len(present) == 1 else x[(ids == c).nonzero()[:, 0]]
            for some in rows.split(size):
                yield c, some.flatten(1).to(self.device)

    def _check(self, x: Tensor, ids: Tensor, position: int) -> None:
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"latents must share one shape, got {tuple(self.shape)} and {tuple(x.shape[1:])}"
            )
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.class_names):
            found = sorted(set(ids.tolist()))
            raise ValueError(f"class_ids must be in [0, {len(self.class_names)}), got {found}")
        # Of the extremes alone: ten times as fast as looking at each value.
        if x.numel() and not torch.isfinite(torch.stack(x.aminmax())).all():
            row = int((~torch.isfinite(x.flatten(1))).any(dim=1).nonzero()[0])
            number, name = position + row, self.class_names[int(ids[row])]
            called = self._name_of(number) if self._name_of else f"{number} (class {name!r})"
            raise ValueError(f"latents must be finite, got nan or inf in picture {called}")


def _as_batches(latents: Tensor | Iterable[Batch], class_ids: Tensor | None) -> Iterable[Batch]:
    if isinstance(latents, Tensor):
        if class_ids is None or len(class_ids) != len(latents):
            got = None if class_ids is None else len(class_ids)
            raise ValueError(f"class_ids must be one id for each of {len(latents)} latents, got {got}")
        return list(zip(latents.split(ROWS_AT_ONCE), class_ids.split(ROWS_AT_ONCE), strict=True))
    if isinstance(latents, Iterator):
        raise ValueError(
            "latents must be a tensor or something that can be iterated more than once, "
            f"got {type(latents).__name__}"
        )
    return latents


class Work:
    """Finished parts in a folder, each a safetensors file; nothing is kept if folder is None."""

    def __init__(self, folder: Path | None, together: Together) -> None:
        self._folder, self._together = folder, together

    def find(self, parts: Sequence[str], shapes: dict[str, tuple]) -> list[dict[str, Tensor] | None]:
        """What is there of these parts, for all processes; None for each that must be computed.

        shapes: of the tensors a part must have; None stands for any number.
        """
        if self._folder is None:
            return [None] * len(parts)
        found = [self._read(part, shapes) for part in parts]
        here = torch.tensor([tensors is not None for tensors in found], dtype=torch.long)
        everywhere = self._together.sum(here) == self._together.count
        return [tensors if all_have else None for tensors, all_have in zip(found, everywhere, strict=True)]

    def write(self, part: str, tensors: dict[str, Tensor]) -> None:
        """Keeps a part; every process may write it."""
        if self._folder is not None:
            write_tensors(tensors, self._path(part))

    def _path(self, part: str) -> Path:
        return Path(str(self._folder)) / f"{part}.safetensors"

    def _read(self, part: str, shapes: dict[str, tuple]) -> dict[str, Tensor] | None:
        try:
            tensors = load_file(self._path(part))
        except (OSError, SafetensorError):
            return None
        right = tensors.keys() == shapes.keys() and all(
            len(shape) == tensors[name].dim()
            and all(side in (None, got) for side, got in zip(shape, tensors[name].shape, strict=True))
            for name, shape in shapes.items()
        )
        return tensors if right else None
