"""onbrand train: the whole main job."""

from __future__ import annotations

from pathlib import Path

from ..configs import load_config
from .console import quiet_console


def train(config: str, overrides: list[str], *, dry_run: bool) -> Path:
    """Runs a config; returns the run's folder. Raises ValueError on anything wrong before the first step."""
    settings = load_config(config, overrides)
    console = quiet_console()
    from ..train.run import run_training

    return run_training(settings, console=console, dry_run=dry_run)
