"""Trains the studies' models: `python benchmarks/reproducibility/train.py OUT`

Some twenty small models, the most telling first, one after the other on one thread; what is there already is
not trained again, what was broken off goes on from its newest checkpoint. `measure.py OUT` comes next.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from models import Model, trained

SIZES = (16, 64, 256, 1024, 4096)
TWICE = (16, 1024)  # of which there are two on the same pictures, beside the largest
BASE = Model()
APART = {
    "another seed": Model(seed=1),
    "a transformer": Model(seed=2, kind="dit", widths=(6, 3)),
    "twice as wide": Model(seed=3, widths=(64, 96)),
    "predicts v": Model(seed=4, prediction="v_prediction"),
    "linear schedule": Model(seed=5, schedule="linear"),
}
OTHER_PICTURES = Model(seed=6, pictures="b")
OTHER_LOOK = Model(seed=7, look="on-brand")
CLASSES_TOLD = [Model(seed=seed, conditional=True, steps=6000) for seed in (10, 11)]
OTHER_TRANSFORMER = Model(seed=12, kind="dit", widths=(6, 3))


def of_size(count: int) -> tuple[Model, Model, Model]:
    """Two trained apart on the same pictures, and one on as many others."""
    if count == SIZES[-1]:
        return BASE, APART["another seed"], OTHER_PICTURES
    return Model(count=count), Model(seed=1, count=count), Model(seed=6, pictures="b", count=count)


MEMORISING = Model(seed=13, count=64, kind="dit", widths=(6, 3), steps=2000)
BY_HEART = Model(seed=14, count=64, widths=(64, 96), steps=8000)


def every_model() -> list[Model]:
    models = [BASE, *APART.values(), OTHER_PICTURES, OTHER_LOOK]
    for count in SIZES[:-1]:
        models += [of_size(count)[0], of_size(count)[2]]
    models += CLASSES_TOLD
    return [*models, MEMORISING, BY_HEART, OTHER_TRANSFORMER, *(of_size(count)[1] for count in TWICE)]


def main(out: Path) -> None:
    (out / "training").mkdir(parents=True, exist_ok=True)
    for model in every_model():
        if (out / "models" / f"{model.name}.safetensors").exists():
            continue
        began = time.process_time()
        trained(model, out)
        line = {"model": model.name, "processor seconds": round(time.process_time() - began)}
        with (out / "times.jsonl").open("a") as lines:
            lines.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
