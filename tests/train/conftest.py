"""A studio run over tiny random models, small enough to train in a test."""

from collections.abc import Callable
from pathlib import Path

import pytest
from onbrand.configs import Config, config_of


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
