"""The processes of a run, and work divided over them."""

import builtins
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def _same(items: list) -> list:
    return items


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as far as dividing work over them goes.

    gather: every process's list, joined in process order, on all of them. wait: returns when all processes
    have called it.
    Raises ValueError unless 0 <= index < count.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[list], list] = _same
    wait: Callable[[], None] = _nothing

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"process index must be in [0, {self.count}), got {self.index}")

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.index == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of items: every count-th."""
        return list(items[self.index :: self.count])

    def map(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        apply: Callable[..., Iterable] = builtins.map,
    ) -> list[R]:
        """All results in the order of items, each computed by one process.

        apply: how a process goes over its share; a thread pool's map, for one. All processes must call this,
        with the same items. An error in one of them ends them all, so that none waits for ever: of several
        errors that of the earliest item is raised, as ValueError where it came from another process.
        """
        done: list[R] = []
        error: Exception | None = None
        try:
            for result in apply(function, self.share(items)):
                done.append(result)
        except Exception as problem:
            error = problem
        message = None if error is None else str(error)
        shares: list[tuple[list[R], str | None]] = self.gather([(done, message)])
        failed = [
            (len(results) * self.count + index, why)
            for index, (results, why) in enumerate(shares)
            if why is not None
        ]
        if failed:
            place, first = min(failed)
            if error is not None and place % self.count == self.index:
                raise error
            raise ValueError(first)
        return [shares[i % self.count][0][i // self.count] for i in range(len(items))]


ALONE = Processes()
