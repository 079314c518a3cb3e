"""Shared by all tests: no network, tiny models, quiet progress bars."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import importlib.util
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from types import ModuleType
from typing import Any

import pytest
import torch
from onbrand.configs import Config, config_of
from onbrand.data.processes import Processes

# the tests run several processes side by side: more threads than cores would make them wait for each other
torch.set_num_threads(1)

PATIENCE = 30  # seconds before a process that waits for ever is an error


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module tests/tiny.py: functions that make tiny models."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_base(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved plain diffusers folder; treat it as read-only."""
    return tiny.save_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded CPU generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def make_config(tiny_base: Path, tmp_path: Path) -> Callable[..., Config]:
    """A config over the tiny random base; keyword arguments are further overrides, dots as double
    underscores."""

    def make(**changes: object) -> Config:
        values = {
            "model.base": tiny_base,
            "data.studio.pictures": 40,
            "data.cache_dir": tmp_path / "latents",
            "data.held_out": 0.2,
            "train.steps": 6,
            "train.batch_size": 4,
            "train.learning_rate": 1e-3,
            "train.ema_decay": 0.9,
            "train.log_every": 1,
            "train.checkpoint_every": 2,
            "train.preview_every": 6,
            "run.dir": tmp_path / "run",
            "run.audit.pictures": 4,
            "run.audit.steps": 20,
        }
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        return config_of([f"{key}={'null' if value is None else value}" for key, value in values.items()])

    return make


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
    """Threads that stand in for the processes of a run, see `run_together`."""
    return run_together
