"""What drawing the offset range more often does: `python benchmarks/emphasis.py [SHARE ...]`

One demo run a share (null: the natural 5.9 %), the same steps, seed, prompts and noises; prints the audit
of each from the class mean and from pure noise. Finished runs are not repeated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from onbrand.configs import load_config
from onbrand.train.run import run_training
from rich.console import Console
from rich.table import Table

PICTURES = 128


def main(shares: list[str]) -> None:
    table = Table(title=f"Demo recipe, {PICTURES} pictures each, share that passes")
    for name in (
        "share of timesteps",
        "class mean: background",
        "class mean: all rules",
        "pure noise: all rules",
    ):
        table.add_column(name, justify="right")
    for share in shares:
        overrides = [
            f"start.emphasis={share}",
            f"run.dir=runs/emphasis_{share}",
            f"run.audit.pictures={PICTURES}",
        ]
        run = run_training(load_config("demo", overrides), console=Console(quiet=True))
        start, noise = (audit(run, name) for name in ("from_start_distribution", "from_pure_noise"))
        table.add_row(
            share,
            f"{start['rules']['background']:.1%}",
            f"{start['pass_rate']:.1%} ± {start['standard_error']:.1%}",
            f"{noise['pass_rate']:.1%}",
        )
    Console().print(table)


def audit(run: Path, name: str) -> dict:
    return json.loads((run / "audits" / f"{name}.json").read_text())


if __name__ == "__main__":
    main(sys.argv[1:] or ["null", "0.15", "0.3"])
