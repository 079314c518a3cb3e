"""onbrand train: the whole main job."""

from __future__ import annotations

from pathlib import Path

from ..configs import load_config
from .console import quiet_console


def train(config: str, overrides: list[str], *, dry_run: bool) -> Path:
    """Runs a config; returns the run's folder. Raises ValueError on anything wrong before the first step.

    Stopped by a signal it exits as a shell would say it: 130 for Ctrl-C, 143 for SIGTERM.
    """
    settings = load_config(config, overrides)
    console = quiet_console()
    from ..train.run import run_training
    from ..train.stop import Stopped

    try:
        return run_training(settings, console=console, dry_run=dry_run)
    except Stopped as stopped:
        raise SystemExit(stopped.exit_code) from None
