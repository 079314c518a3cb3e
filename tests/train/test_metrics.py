"""Means over what was trained since the last line; the lines of metrics.jsonl."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from onbrand.train.metrics import (
    LossMeter,
    append_metrics,
    held_out_losses,
    peak_memory,
    read_metrics,
    rewind_metrics,
)

CPU = torch.device("cpu")


def make_meter() -> LossMeter:
    return LossMeter(["bag", "mug"], offset_from=900, device=CPU)


def show(meter: LossMeter, losses: list[float], timesteps: list[int], class_ids: list[int]) -> None:
    meter.add(torch.tensor(losses), torch.tensor(timesteps), torch.tensor(class_ids))


def test_every_group_has_the_mean_of_its_samples() -> None:
    meter = make_meter()
    show(meter, [1.0, 2.0, 6.0], [0, 899, 900], [0, 1, 1])
    show(meter, [3.0], [999], [1])
    means = meter.means(Accelerator(cpu=True))
    expected = {"loss": 3.0, "loss_offset_range": 4.5, "loss_elsewhere": 1.5}
    expected |= {"loss_class/bag": 1.0, "loss_class/mug": pytest.approx(11 / 3)}
    assert {name: value for name, value in means.items() if name.startswith("loss")} == expected


def test_a_group_without_samples_is_left_out_and_every_line_starts_anew() -> None:
    meter, accelerator = make_meter(), Accelerator(cpu=True)
    show(meter, [5.0], [950], [0])
    meter.add_norm(9.0)
    meter.means(accelerator)
    show(meter, [1.0], [10], [1])
    means = meter.means(accelerator)
    assert set(means) == {"loss", "loss_elsewhere", "loss_class/mug", "images_per_second", "memory_gib"}
    assert means["loss"] == 1.0


def test_means_are_over_all_processes() -> None:
    meter = make_meter()
    show(meter, [1.0, 2.0], [0, 950], [0, 1])
    other = make_meter()
    show(other, [4.0, 5.0, 6.0], [0, 0, 0], [0, 0, 1])
    accelerator = SimpleNamespace(reduce=lambda sums, reduction: sums + other.sums)
    means = meter.means(accelerator)
    assert means["loss"] == pytest.approx(18 / 5)
    assert means["loss_offset_range"] == 2.0
    assert means["loss_class/bag"] == pytest.approx(10 / 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stays_in_the_mean(bad: float) -> None:
    meter = make_meter()
    show(meter, [1.0, bad], [0, 0], [0, 0])
    show(meter, [1.0], [0], [0])
    assert not math.isfinite(meter.means(Accelerator(cpu=True))["loss"])


def test_the_gradient_norm_is_the_mean_of_the_steps() -> None:
    meter = make_meter()
    for norm in (torch.tensor(1.0, dtype=torch.float64), 2.0, None, torch.tensor(6.0)):
        meter.add_norm(norm)
    assert meter.means(Accelerator(cpu=True))["grad_norm"] == 3.0


@pytest.mark.parametrize("overflow", [math.inf, math.nan])
def test_a_step_that_the_scaler_skips_is_left_out(overflow: float) -> None:
    meter, accelerator = make_meter(), Accelerator(cpu=True)
    for norm in (1.0, overflow, 3.0):
        meter.add_norm(norm, may_overflow=True)
    assert meter.means(accelerator)["grad_norm"] == 2.0
    meter.add_norm(overflow, may_overflow=True)
    assert "grad_norm" not in meter.means(accelerator)
    for norm in (1.0, overflow):
        meter.add_norm(norm)
    assert not math.isfinite(meter.means(accelerator)["grad_norm"])


def test_pace_counts_pictures_since_the_clock_was_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("onbrand.train.metrics.time.perf_counter", lambda: now[0])
    meter = make_meter()
    now[0] = 160.0  # a minute of saving
    meter.restart_clock()
    show(meter, [1.0] * 6, [0] * 6, [0] * 6)
    now[0] = 162.0
    accelerator = Accelerator(cpu=True)
    assert meter.means(accelerator)["images_per_second"] == 3.0
    show(meter, [1.0] * 2, [0] * 2, [0] * 2)
    now[0] = 163.0
    assert meter.means(accelerator)["images_per_second"] == 2.0


def test_memory_is_this_processs_own() -> None:
    kib = next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    assert peak_memory(CPU) == pytest.approx(kib * 1024, rel=0.05)
    assert make_meter().means(Accelerator(cpu=True))["memory_gib"] == pytest.approx(kib / 2**20, rel=0.1)


def test_lines_come_back_rounded_and_up_to_a_step(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    assert held_out_losses(tmp_path) == {}
    append_metrics(tmp_path, {"step": 1, "loss": 0.12345678})
    append_metrics(tmp_path, {"step": 2, "loss": 0.5, "held_out_loss": 0.25})
    append_metrics(tmp_path, {"step": 4, "loss": 0.5, "held_out_loss": 0.125, "held_out_class/mug": 0.1})
    assert read_metrics(tmp_path)[0] == {"step": 1, "loss": 0.123457}
    assert [row["step"] for row in read_metrics(tmp_path, up_to=2)] == [1, 2]
    assert held_out_losses(tmp_path) == {2: 0.25, 4: 0.125}


def test_rewinding_drops_later_lines_and_what_was_cut_off(tmp_path: Path) -> None:
    rewind_metrics(tmp_path, 3)
    assert not list(tmp_path.iterdir())
    for step in (1, 2, 4):
        append_metrics(tmp_path, {"step": step, "held_out_loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 5, "lo')
    rewind_metrics(tmp_path, 2)
    assert held_out_losses(tmp_path) == {1: 1.0, 2: 2.0}
    append_metrics(tmp_path, {"step": 3})
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
