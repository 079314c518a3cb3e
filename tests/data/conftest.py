"""Threads that stand in for the processes of a run."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import pytest
from onbrand.data.processes import Processes

PATIENCE = 30  # seconds before a process that waits for ever is an error


def run_together(count: int, work: Callable[[Processes], Any]) -> list[Any]:
    """What work returned, or the ValueError it raised, in each of count processes."""
    barrier, lists = Barrier(count, timeout=PATIENCE), [[]] * count

    def gather(index: int, items: list) -> list:
        lists[index] = pickle.loads(pickle.dumps(items))
        barrier.wait()
        joined = [item for part in lists for item in part]
        barrier.wait()
        return joined

    def run(index: int) -> Any:
        try:
            return work(Processes(index, count, partial(gather, index), barrier.wait))
        except ValueError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@pytest.fixture
def together() -> Callable[..., list[Any]]:
    return run_together
