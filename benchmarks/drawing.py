"""Drawing in channels-last against diffusers' own layout: `python benchmarks/drawing.py [PAIRS]`

The tiny base draws the same pictures in both layouts in turn, 20 DDIM steps with guidance and the decoder;
prints the median seconds of each, the median ratio of the pairs, and how far the pictures are apart.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import torch
from onbrand.inference import load_pipeline
from onbrand.inference.generate import generate
from onbrand.inference.load import to_draw
from onbrand.train.models import TINY_BASE
from rich.console import Console
from rich.table import Table

PROMPT, BATCHES = "a red striped mug", (1, 8, 32)


def main(pairs: int) -> None:
    own, ours = load_pipeline(TINY_BASE), to_draw(load_pipeline(TINY_BASE), "cpu")
    table = Table(title=f"20 DDIM steps of the tiny base, {torch.get_num_threads()} threads, {pairs} pairs")
    for name in ("batch", "diffusers' layout, s", "channels-last, s", "ratio", "apart, of 255"):
        table.add_column(name, justify="right")
    for batch in BATCHES:
        seconds: list[list[float]] = []
        for _ in range(pairs + 1):
            drawn, times = [], []
            for pipeline in (own, ours):
                began = time.perf_counter()
                drawn.append(np.stack(generate(pipeline, [PROMPT] * batch, batch_size=batch)).astype(int))
                times.append(time.perf_counter() - began)
            seconds.append(times)
        before, after = (statistics.median(side) for side in zip(*seconds[1:], strict=True))
        ratio = statistics.median(slow / fast for slow, fast in seconds[1:])
        apart = int(np.abs(drawn[0] - drawn[1]).max())
        table.add_row(str(batch), f"{before:.2f}", f"{after:.2f}", f"{ratio:.2f}", str(apart))
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
