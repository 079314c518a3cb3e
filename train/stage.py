"""What every stage of a run is given, and the folder that a run owns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from filelock import FileLock, Timeout
from rich.console import Console

from ..configs import ConfigError, differences, parse_config
from ..configs.schema import Config
from ..data.processes import Processes
from ..whole_file import write_whole

CONFIG = "config.yaml"
# what may differ when a run goes on: the global batch is compared as a whole, folders may be moved
FREE = {
    "data": ("cache_dir",),
    "train": ("batch_size", "gradient_accumulation", "workers"),
    "run": ("dir", "processes", "tracker"),
}
INPUTS = "inputs.json"


@dataclass
class Stage:
    """What every stage of a run is given."""

    config: Config
    run: Path
    accelerator: Accelerator
    processes: Processes
    console: Console

    def say(self, what: Any, **options: Any) -> None:
        """Prints on the main process alone."""
        if self.processes.is_main:
            self.console.print(what, **options)


def check_same_config(config: Config) -> None:
    """Raises ConfigError, listing what differs, if the run's folder was started with another config."""
    file = Path(config.run.dir) / CONFIG
    if not file.exists():
        return
    # keys that are newer than the run had their defaults then
    before, after = parse_config(yaml.safe_load(file.read_text())).to_dict(), config.to_dict()
    for section, keys in FREE.items():
        for key in keys:
            before[section][key] = after[section][key]
    if changed := differences(before, after):
        raise ConfigError(
            f"config must be the one that {file.parent} was started with, got differences:\n  "
            + "\n  ".join(changed)
        )


def start_run(config: Config) -> Path:
    """The run's folder, made with its config.yaml if it is new.

    Raises ConfigError if another command has started it with another config in the meantime.
    """
    check_same_config(config)
    file = Path(config.run.dir) / CONFIG
    if not file.exists():
        write_whole(yaml.safe_dump(config.to_dict(), sort_keys=False), file)
    return file.parent


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """The run's folder for this command alone, until the block ends or the process dies.

    Raises ValueError if another command is at work in it.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"run must be trained by one command at a time, got another at work in {run}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_same_inputs(run: Path, inputs: dict[str, Any]) -> bool:
    """Whether the run has recorded its inputs. Raises ConfigError if those it recorded were others."""
    file = run / INPUTS
    before = json.loads(file.read_text()) if file.exists() else {}
    if changed := differences(before, {key: value for key, value in inputs.items() if key in before}):
        raise ConfigError(f"{run} must go on with what it was started with, got " + "; ".join(changed))
    return file.exists()


def recorded(run: Path, key: str, default: Any) -> Any:
    """An input that the run has recorded, `default` if it has not."""
    file = run / INPUTS
    return json.loads(file.read_text()).get(key, default) if file.exists() else default
