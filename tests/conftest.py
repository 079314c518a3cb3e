"""Shared by all tests: no network, tiny models, quiet progress bars."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from onbrand.configs import Config, config_of

# the tests run several processes side by side: more threads than cores would make them wait for each other
torch.set_num_threads(1)


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
