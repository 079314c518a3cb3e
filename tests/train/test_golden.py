"""A tiny run whose losses are known: a change of draws, objective or order has to be owned up to here."""

from collections.abc import Callable

import pytest
from onbrand.configs import Config
from onbrand.train.metrics import read_metrics
from onbrand.train.run import run_training
from rich.console import Console

GOLDEN = {
    "offset": [1.129567, 1.149128, 1.071051, 1.045044, 1.029317, 0.969224],
    "plain": [1.12524, 1.165214, 1.071694, 1.045137, 1.027373, 0.984277],
}


@pytest.mark.parametrize("kind", ["offset", "plain"])
def test_golden_losses(make_config: Callable[..., Config], kind: str) -> None:
    options = {"start__emphasis": 0.5} if kind == "offset" else {"start__enabled": "false"}
    run = run_training(make_config(**options), console=Console(quiet=True))
    losses = [row["loss"] for row in read_metrics(run)]
    assert losses == pytest.approx(GOLDEN[kind], rel=2e-3)
