"""Two real processes, gloo on the CPU, against one: the same global batches, so the same run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from onbrand.configs import Config
from onbrand.pca import StartDistribution
from onbrand.train.metrics import read_metrics
from onbrand.train.run import run_training
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

STEPS = 20


def torchrun(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess:
    """Runs a program in several processes, as a user would."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_port", str(20000 + os.getpid() % 20000), *map(str, arguments)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def launch(config: Config, folder: Path) -> subprocess.CompletedProcess:
    """`onbrand train` in two processes."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    return torchrun("-m", "onbrand", "train", file)


def flat(values: dict, prefix: str = "") -> list[str]:
    """Nested config values as overrides."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += flat(value, f"{prefix}{key}.")
        elif value is not None:
            found.append(f"{prefix}{key}={json.dumps(value)}")
    return found


def pictures_in(cache: Path) -> list[str]:
    """The keys of all shards of pictures."""
    found = []
    for file in cache.glob("*/shard-*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            if "mean" in shard.keys():  # noqa: SIM118
                found += json.loads(shard.metadata()["pictures"])
    return found


@pytest.fixture(scope="module")
def options() -> dict[str, object]:
    return {
        "train__optimizer": "sgd",
        "train__learning_rate": 0.01,
        "train__steps": STEPS,
        "train__ema_decay": 0,
        "train__checkpoint_every": STEPS,
        "train__preview_every": STEPS,
        "train__validate_every": STEPS,
        "train__schedule": "cosine",
        "start__emphasis": 0.5,
        "run__audit__steps": 2,
    }


def test_two_processes_fit_what_one_fits(tiny_base: Path, tmp_path: Path) -> None:
    common = [
        f"model.base={tiny_base}",
        "data.resolution=64",
        "data.studio.pictures=80",
        "start.components=2",
        "start.family=text",
    ]
    command = ["-m", "onbrand", "fit", "photo-studio", *common, "-o"]
    done = torchrun(*command, tmp_path / "two" / "fit")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The leak, before training") == 1
    alone = subprocess.run(
        [sys.executable, *command, str(tmp_path / "one" / "fit")], capture_output=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    one, two = (
        StartDistribution.from_pretrained(tmp_path / name / "fit" / "start_distribution")
        for name in ("one", "two")
    )
    assert one.config["counts"] == two.config["counts"]
    for name, tensor in one.state_dict().items():
        scale = tensor.abs().max()
        torch.testing.assert_close(two.state_dict()[name], tensor, rtol=0, atol=1e-4 * float(scale), msg=name)
    found = [
        json.loads((tmp_path / name / "fit" / "diagnosis.json").read_text())["64x64"]["outliers"]
        for name in ("one", "two")
    ]
    assert {outlier["picture"] for outlier in found[0]} == {outlier["picture"] for outlier in found[1]}


def test_two_processes_follow_the_loss_curve_of_one(
    make_config: Callable[..., Config], tmp_path: Path, options: dict[str, object]
) -> None:
    one = run_training(
        make_config(**options, train__batch_size=4, run__dir=tmp_path / "one"), console=Console(quiet=True)
    )
    two = tmp_path / "two"
    config = make_config(
        **options,
        train__batch_size=2,
        run__dir=two,
        data__cache_dir=tmp_path / "two_latents",
        run__processes=2,
    )
    done = launch(config, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 x 2 process(es) x 1 accumulation = 4" in done.stdout
    rows = [read_metrics(one), read_metrics(two)]
    assert len(rows[0]) == len(rows[1]) == STEPS
    for first, second in zip(*rows, strict=True):
        shared = [key for key in first if key not in ("images_per_second", "memory_gib")]
        assert set(first) == set(second)
        assert {"loss", "lr", "grad_norm"} <= set(shared)
        for key in shared:
            assert second[key] == pytest.approx(first[key], rel=1e-4), (first["step"], key)
    weights = [load_file(run / "model/unet/diffusion_pytorch_model.safetensors") for run in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5)
    held = [sorted(keys) for keys in (pictures_in(tmp_path / name) for name in ("latents", "two_latents"))]
    assert held[0] == held[1]
    assert len(held[1]) == len(set(held[1])) == 40  # neither process encoded what the other did
    audits = [json.loads((run / "audit.json").read_text()) for run in (one, two)]
    assert [audits[0][key] for key in ("pass_rate", "n", "rules")] == [
        audits[1][key] for key in ("pass_rate", "n", "rules")
    ]
    starts = [load_file(run / "start_distribution/diffusion_pytorch_model.safetensors") for run in (one, two)]
    torch.testing.assert_close(starts[0]["mean"], starts[1]["mean"], rtol=0, atol=1e-5)


def test_sharded_training_follows_the_same_curve_and_resumes_with_the_same_bits(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    options = {"train__steps": 4, "train__checkpoint_every": 2, "run__audit__steps": 2}
    one = run_training(
        make_config(**options, train__batch_size=4, run__dir=tmp_path / "one"), console=Console(quiet=True)
    )
    script, two = Path(__file__).with_name("fsdp_on_cpu.py"), tmp_path / "two"
    overrides = flat(make_config(**options, train__batch_size=2, run__dir=two).to_dict())
    done = torchrun(script, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [[row["loss"] for row in read_metrics(run)] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    shipped = two / "model/unet/diffusion_pytorch_model.safetensors"
    before = shipped.read_bytes()
    for gone in ("model", "audits", "checkpoints/step_4"):
        shutil.rmtree(two / gone)
    (two / "audit.json").unlink()
    done = torchrun(script, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    assert shipped.read_bytes() == before


def test_another_number_of_processes_than_asked_for_is_said_at_once(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = make_config(run__processes=2)
    with pytest.raises(
        ValueError, match=r"run\.processes must be the number of processes started, got 2 with 1"
    ):
        run_training(config, console=Console(quiet=True))
    assert not Path(config.run.dir).exists()
