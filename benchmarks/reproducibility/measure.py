"""Measures the studies' models: `python benchmarks/reproducibility/measure.py OUT [STUDY ...]`

After `train.py OUT`. Without STUDY all of them: apart, classes, autoencoders, sizes, memorised, inversion,
offset, tuning, inverse. Prints tables and writes charts to OUT; OUT/results.jsonl keeps what was measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from apart import apart, autoencoders, with_classes
from inverse import inverse
from noise import inversion
from offset import offset
from results import calibration
from sizes import memorised, sizes
from tuning import tuning

STUDIES = {
    "apart": apart,
    "classes": with_classes,
    "autoencoders": autoencoders,
    "sizes": sizes,
    "memorised": memorised,
    "inversion": inversion,
    "offset": offset,
    "tuning": tuning,
    "inverse": inverse,
}


def main(out: Path, names: list[str]) -> None:
    unknown = [name for name in names if name not in STUDIES]
    if unknown:
        raise ValueError(f"studies must be of {', '.join(STUDIES)}, got {', '.join(unknown)}")
    print(calibration(out))
    for name in names or STUDIES:
        STUDIES[name](out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
