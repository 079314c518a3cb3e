"""How long something takes, free of its first runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def median_ms(run: Callable[[], object], *, repeats: int) -> float:
    """Milliseconds of the median run, the first fifth left out."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[len(times) // 5 :])
