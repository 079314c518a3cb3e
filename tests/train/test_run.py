import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from onbrand.configs import Config, ConfigError
from onbrand.configs.schema import ModelConfig
from onbrand.data.processes import Processes
from onbrand.inference import load_pipeline
from onbrand.train import loop, metrics, preview
from onbrand.train import run as run_module
from onbrand.train.checkpoint import checkpoints, step_of
from onbrand.train.loop import check_loss
from onbrand.train.metrics import read_metrics, rewind_metrics
from onbrand.train.models import load_base
from onbrand.train.run import check_tracker, run_training
from onbrand.train.stage import check_same_config, hold, start_run
from onbrand.train.stop import Stopped
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessor

QUIET = Console(quiet=True)
MakeConfig = Callable[..., Config]


class TwoInName(Processes):
    """One process that says it is one of two."""

    def __init__(self) -> None:
        super().__init__(count=2, gather=lambda part: part * 2)

    def share(self, items: Sequence) -> list:
        return list(items)

    def map(self, function: Callable, items: Sequence, **_: object) -> list:
        return [function(item) for item in items]


def undo(run: Path, *names: str) -> None:
    """Takes files and folders out of a run, as if it had not come to write them."""
    for name in names:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_run_leaves_everything_it_promises(make_config: MakeConfig, tiny_base: Path) -> None:
    run = run_training(make_config(), console=QUIET)
    promised = (
        "config.yaml start_distribution metrics.jsonl audit.json limits.json report.html "
        "before_and_after.png samples/step_0.png samples/step_6.png"
    )
    for name in promised.split():
        assert (run / name).exists(), name
    assert not list(run.rglob("*.partial"))
    audit = json.loads((run / "audit.json").read_text())
    assert audit["n"] == 4
    assert {"pass_rate", "rules"} <= set(audit)
    assert [step_of(path) for path in checkpoints(run)] == [4, 6]
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] > 0 for row in rows)
    before = load_base(ModelConfig(base=str(tiny_base))).unet.state_dict()
    assert any(not torch.equal(before[key], value) for key, value in weights_of(run).items())
    shipped = load_pipeline(run / "model")
    assert shipped.start_distribution.class_names[0] == "bag"
    assert shipped.start_distribution.offset_from == 941
    page = (run / "report.html").read_text()
    assert "http" not in page
    assert (run / page.split('href="')[1].split('"')[0]).read_text().count('<li class="') == 4


def test_the_same_command_again_repeats_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_training(make_config(), console=QUIET)
    written = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("trained again"))
    assert run_training(make_config(), console=QUIET) == run
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == written


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_ends_with_the_same_bits(make_config: MakeConfig, tmp_path: Path, method: str,
                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    options = {
        "model__method": method,
        "train__steps": 5,
        "train__schedule": "cosine",
        "train__weight_decay": 0.1,
    }
    whole = run_training(make_config(run__dir=tmp_path / "whole", **options), console=QUIET)
    config = make_config(run__dir=tmp_path / "broken", **options)
    original = loop.check_loss

    def power_cut(values: dict, run: Path, *, limit: float) -> None:
        if values["step"] == 4:
            raise KeyboardInterrupt
        original(values, run, limit=limit)

    monkeypatch.setattr(loop, "check_loss", power_cut)
    with pytest.raises(KeyboardInterrupt):
        run_training(config, console=QUIET)
    monkeypatch.setattr(loop, "check_loss", original)
    assert [step_of(path) for path in checkpoints(tmp_path / "broken")] == [2]
    broken = run_training(config, console=QUIET)
    first, second = weights_of(whole), weights_of(broken)
    assert all(torch.equal(first[key], second[key]) for key in first)
    keys = ("step", "loss", "loss_elsewhere", "lr")
    assert [[row.get(key) for key in keys] for row in read_metrics(whole)] == [
        [row.get(key) for key in keys] for row in read_metrics(broken)
    ]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_same_command_goes_on(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int
) -> None:
    options = {"model__method": "lora", "model__lora__dropout": 0.2, "train__checkpoint_every": 5}
    whole = run_training(make_config(run__dir=tmp_path / "whole", **options), console=QUIET)
    config = make_config(run__dir=tmp_path / "broken", **options)
    original = loop.training_loss
    calls: list[int] = []

    def signalled(*args: object, **keywords: object):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signum)
        return original(*args, **keywords)

    monkeypatch.setattr(loop, "training_loss", signalled)
    before = signal.getsignal(signum)
    with pytest.raises(
        Stopped, match=rf"stopped by {signal.Signals(signum).name} after step 3, saved in .*step_3"
    ):
        run_training(config, console=QUIET)
    assert signal.getsignal(signum) == before
    assert [step_of(path) for path in checkpoints(tmp_path / "broken")] == [3]
    assert not (tmp_path / "broken" / "model").exists()
    broken = run_training(config, console=QUIET)
    first, second = weights_of(whole), weights_of(broken)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_signal_at_the_end_stops_before_the_export(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, config = run_module.save_preview, make_config()

    def signalled(*args: Any, step: int, **keywords: Any) -> None:
        if step == config.train.steps:
            os.kill(os.getpid(), signal.SIGTERM)
        original(*args, step=step, **keywords)

    monkeypatch.setattr(run_module, "save_preview", signalled)
    with pytest.raises(Stopped, match=r"stopped by SIGTERM after step 6, saved in .*step_6"):
        run_training(config, console=QUIET)
    assert not (Path(config.run.dir) / "model").exists()
    assert (run_training(config, console=QUIET) / "model").exists()


def test_a_corrupt_checkpoint_is_skipped_by_name_and_the_one_before_it_used(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    whole = run_training(make_config(run__dir=tmp_path / "whole"), console=QUIET)
    config = make_config(run__dir=tmp_path / "broken")
    broken = run_training(config, console=QUIET)
    undo(broken, "model", "audits", "audit.json")
    damaged = broken / "checkpoints" / "step_6" / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    console = Console(record=True, width=300, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    run_training(config, console=console)
    assert re.search(
        r"checkpoint .*step_6 is skipped: model.safetensors has changed since it was written",
        console.export_text(),
    )
    first, second = weights_of(whole), weights_of(broken)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_goes_on_with_another_split_of_the_same_global_batch(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """As with twice the processes and half the batch of each: what is compared is the global batch."""
    odd = {"train__checkpoint_every": 3}  # where steps that accumulate two batches must begin anew
    whole = run_training(make_config(run__dir=tmp_path / "whole", **odd), console=QUIET)
    broken = run_training(make_config(run__dir=tmp_path / "broken", **odd), console=QUIET)
    undo(broken, "model", "audits", "audit.json", "checkpoints/step_6")
    changes = {"train__batch_size": 2, "train__gradient_accumulation": 2, "train__workers": 1}
    run_training(make_config(run__dir=broken, **odd, **changes), console=QUIET)
    rows = [read_metrics(run) for run in (whole, broken)]
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in rows[1]] == pytest.approx([row[key] for row in rows[0]], rel=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_warms_up(make_config: MakeConfig, schedule: str) -> None:
    run = run_training(make_config(train__schedule=schedule, train__warmup_steps=4), console=QUIET)
    rates = [row["lr"] for row in read_metrics(run)]
    assert rates[:3] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3])


def open_files() -> int:
    """File descriptors of this process, 0 where the system does not list them."""
    listed = Path("/proc/self/fd")
    return len(list(listed.iterdir())) if listed.exists() else 0


def test_previews_of_a_long_run_do_not_pile_up_open_files(make_config: MakeConfig) -> None:
    before = open_files()
    run = run_training(make_config(train__preview_every=1, train__steps=4), console=QUIET)
    assert len(list((run / "samples" / "growth").glob("*.png"))) == 5 * 8
    assert open_files() < before + 20


def test_the_sheet_of_a_long_run_shows_some_visits_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page's picture cannot be of any height."""
    laid: list[list[str]] = []
    sheet = preview.side_by_side
    monkeypatch.setattr(
        preview, "side_by_side", lambda rows, **how: laid.append(list(rows)) or sheet(rows, **how)
    )
    monkeypatch.setattr(preview, "MOST_IN_GROWTH", 3)
    for step in range(6):
        preview._grow(tmp_path, [Image.new("RGB", (8, 8))], step=10 * step)
    assert laid[:3] == [[f"step {10 * n}" for n in range(count)] for count in (1, 2, 3)]
    assert laid[-1] == ["step 0", "step 20", "step 50"]


def test_a_preview_that_a_killed_run_did_not_draw_is_drawn(make_config: MakeConfig) -> None:
    run = run_training(make_config(train__preview_every=3), console=QUIET)
    undo(run, "model", "audits", "audit.json", "samples/step_6.png")
    run_training(make_config(train__preview_every=3), console=QUIET)
    assert (run / "samples/step_6.png").exists()


def test_two_commands_do_not_train_one_run(make_config: MakeConfig) -> None:
    run = Path(make_config().run.dir)
    with hold(run), pytest.raises(ValueError, match="one command at a time, got another at work in"):
        run_training(make_config(), console=QUIET)
    assert [file.name for file in run.iterdir()] == [".lock"]  # before anything was encoded


def test_a_run_that_failed_is_free_for_the_next_command(make_config: MakeConfig) -> None:
    config = make_config(train__max_loss=0.5)
    with pytest.raises(ValueError, match="loss must be at most") as failure:
        run_training(config, console=QUIET)
    with hold(Path(config.run.dir)):
        assert failure.tb  # which keeps all of the run's variables


@pytest.mark.parametrize(
    "options",
    [
        {"train__channels_last": True},
        {"train__gradient_checkpointing": True},
        {"train__cache_text": False},
        {"train__workers": 2},
    ],
)
def test_what_makes_it_fast_or_small_leaves_the_losses_alone(
    make_config: MakeConfig, tmp_path: Path, options: dict
) -> None:
    plain = run_training(make_config(run__dir=tmp_path / "plain"), console=QUIET)
    other = run_training(make_config(run__dir=tmp_path / "other", **options), console=QUIET)
    losses = [[row["loss"] for row in read_metrics(run)] for run in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_compiled_unet_leaves_the_losses_alone(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    original = torch.nn.Module.compile

    def without_code_generation(module: torch.nn.Module) -> None:
        compiled.append(type(module).__name__)
        original(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", without_code_generation)
    options = {"train__steps": 3, "train__preview_every": 3, "run__audit__steps": 2}
    plain = run_training(make_config(run__dir=tmp_path / "plain", **options), console=QUIET)
    other = run_training(
        make_config(run__dir=tmp_path / "other", train__compile=True, **options), console=QUIET
    )
    assert compiled == ["UNet2DConditionModel"]
    losses = [[row["loss"] for row in read_metrics(run)] for run in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert set(weights_of(plain)) == set(weights_of(other))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_bf16_follows_the_float32_losses_and_ships_float32(
    make_config: MakeConfig, tmp_path: Path, method: str
) -> None:
    plain = run_training(make_config(run__dir=tmp_path / "plain", model__method=method), console=QUIET)
    AcceleratorState._reset_state(reset_partial_state=True)  # a process keeps its first precision
    half = run_training(
        make_config(run__dir=tmp_path / "half", model__method=method, train__mixed_precision="bf16"),
        console=QUIET,
    )
    losses = [[row["loss"] for row in read_metrics(run)] for run in (plain, half)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert losses[0] != losses[1]
    assert all(value.dtype == torch.float32 for value in weights_of(half).values())
    AcceleratorState._reset_state(reset_partial_state=True)


def test_an_exploding_loss_stops_the_run(make_config: MakeConfig) -> None:
    with pytest.raises(
        ValueError, match=r"loss must be at most 0.5 \(train.max_loss\), got 1.\d+ by step 1; there is no"
    ):
        run_training(make_config(train__max_loss=0.5), console=QUIET)


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    values = {"step": 7, "loss": 1.0, "grad_norm": float("inf")}
    with pytest.raises(ValueError, match="gradient norm must be finite, got inf by step 7"):
        check_loss(values, Path("no/run"), limit=10)


def test_a_run_with_another_config_stops_and_says_what_differs(make_config: MakeConfig) -> None:
    start_run(make_config())
    with pytest.raises(ConfigError, match=r"got differences:\n  train.learning_rate: 0.001 -> 0.002"):
        run_training(make_config(train__learning_rate=2e-3), console=QUIET)


def test_a_run_that_was_moved_goes_on(make_config: MakeConfig, tmp_path: Path) -> None:
    start_run(make_config(run__dir=tmp_path / "one"))
    (tmp_path / "one").rename(tmp_path / "two")
    check_same_config(make_config(run__dir=tmp_path / "two", data__cache_dir=str(tmp_path / "elsewhere")))


@pytest.mark.parametrize(
    ("change", "message"),
    [("pictures", r"pictures: .* -> "), ("batch", r"global batch: 4 -> 8"), ("base", r"base: .* -> ")],
)
def test_a_run_goes_on_only_with_what_it_was_started_with(
    make_config: MakeConfig,
    tiny: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    message: str,
) -> None:
    base = tiny.save_base(tmp_path / "base")
    run_training(make_config(model__base=base), console=QUIET)
    if change == "pictures":
        monkeypatch.setattr("onbrand.data.studio.STUDIO_VERSION", 2)
    elif change == "batch":
        monkeypatch.setattr("onbrand.train.run.processes_of", lambda accelerator: TwoInName())
    else:
        unet = tiny.make_unet(seed=1)
        unet.save_pretrained(base / "unet")
    with pytest.raises(ConfigError, match=message):
        run_training(make_config(model__base=base), console=QUIET)


def test_a_half_written_metrics_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    rewind_metrics(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_tracker_that_is_not_installed_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"run.tracker must be an installed library, got 'tensorboard'"):
        check_tracker("tensorboard")
    check_tracker("none")


def test_wandb_is_offline_by_default_and_keeps_its_files_in_the_run(make_config: MakeConfig) -> None:
    run = run_training(make_config(run__tracker="wandb", train__steps=2), console=QUIET)
    assert list((run / "wandb").glob("offline-run-*"))


def test_a_class_of_one_leaves_nothing_to_hold_out(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="must have a class of at least two pictures to hold one out, got 1"):
        run_training(make_config(data__studio__pictures=1), console=QUIET)


def test_dry_run_writes_no_run(make_config: MakeConfig) -> None:
    console = Console(record=True, width=120, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    run = run_training(make_config(), console=console, dry_run=True)
    text = console.export_text()
    assert not run.exists()
    assert "t >= 941 of 1000" in text
    assert "4 x 1 process(es) x 1 accumulation = 4" in text
    assert "EulerDiscreteScheduler, 30 steps" in text


def test_lora_run_ships_merged_weights_and_its_adapters(make_config: MakeConfig, tiny_base: Path) -> None:
    run = run_training(make_config(model__method="lora", model__lora__rank=2), console=QUIET)
    assert (run / "lora" / "pytorch_lora_weights.safetensors").exists()
    merged = weights_of(run)
    assert not any("lora" in key for key in merged)
    base = load_base(ModelConfig(base=str(tiny_base)))
    changed = [key for key, value in base.unet.state_dict().items() if not torch.equal(value, merged[key])]
    assert changed
    assert all("attn" in key for key in changed)
    base.load_lora_weights(run / "lora")
    base.fuse_lora()
    base.unload_lora_weights()
    for key, value in base.unet.state_dict().items():
        torch.testing.assert_close(value, merged[key], rtol=1e-4, atol=1e-6)


def test_lora_targets_that_match_nothing(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match=r"must match modules of the UNet, got \['to_qq'\]"):
        run_training(make_config(model__method="lora", model__lora__targets="[to_q, to_qq]"), console=QUIET)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = loop.training_loss, []

    def poisoned(batch: dict, **options: object):
        calls.append(1)
        loss, per_sample = original(batch, **options)
        return (loss * float("nan"), per_sample * float("nan")) if len(calls) > 3 else (loss, per_sample)

    monkeypatch.setattr(loop, "training_loss", poisoned)
    config = make_config()
    with pytest.raises(
        ValueError, match=r"loss must be finite, got nan by step 4; the last good checkpoint is .*step_2"
    ):
        run_training(config, console=QUIET)
    assert [step_of(path) for path in checkpoints(Path(config.run.dir))] == [2]
    saved = load_file(Path(config.run.dir) / "checkpoints" / "step_2" / "model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())


def test_too_few_pictures_for_the_components_is_said_before_encoding(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"start.components must be below .* got 9 for class '\w+' with \d"):
        run_training(make_config(start__components=9), console=QUIET)
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize(
    ("family", "options"),
    [("text", {"components": 2}), ("pooled", {}), ("diagonal", {}), ("dct", {"band": 2})],
)
def test_every_family_trains_and_ships(make_config: MakeConfig, family: str, options: dict) -> None:
    keys = {f"start__{key}": value for key, value in options.items()} | {"data__studio__pictures": 80}
    run = run_training(make_config(start__family=family, **keys), console=QUIET)
    model = load_pipeline(run / "model")
    assert model.start_distribution.family == family
    assert model.start_distribution.config["format_version"] == 3
    assert (model.start_distribution.config["text_fingerprint"] is not None) == (family == "text")
    assert json.loads((run / "audit.json").read_text())["n"] == 4
    first = read_metrics(run)[0]["loss"]
    assert 0 < first < 10


def test_a_band_beyond_the_latents_is_said_before_encoding(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(start__family="dct", start__band=17)
    with pytest.raises(ValueError, match=r"start.band must be at most 16, the latents' shorter side, got 17"):
        run_training(config, console=QUIET)
    assert not (tmp_path / "latents").exists()


def test_components_are_drawn_from_at_the_audit(make_config: MakeConfig) -> None:
    run = run_training(make_config(start__components=1, data__studio__pictures=60), console=QUIET)
    assert load_pipeline(run / "model").start_distribution.components.shape[1] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__base": "/no/such/folder"}, "must be an existing folder"),
        ({"data__source": "/no/such/catalogue"}, "catalogue source must be"),
        ({"start__samplers": "[{scheduler: DDIMScheduler, steps: 4}]"}, "0.9 T"),
        ({"start__samplers": "[{scheduler: DDIMSchedular, steps: 20}]"}, "DDIMScheduler"),
        ({"run__audit__scheduler": "DDIMSchedular"}, "DDIMScheduler"),
        ({"start__offset_from": 1000}, "start.offset_from must be below 1000, got 1000"),
    ],
)
def test_bad_input_stops_before_anything_is_written(
    make_config: MakeConfig, changes: dict, message: str
) -> None:
    config = make_config(**changes)
    with pytest.raises(ValueError, match=message):
        run_training(config, console=QUIET)
    assert not Path(config.run.dir).exists()


class Reached(Exception):
    """Ends a run where a test has seen enough."""


def test_limits_are_decoded_on_the_runs_device_where_latents_are_cached(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fix_limits(part: Any, vae: AutoencoderKL, **_: object) -> None:
        raise Reached

    monkeypatch.setattr("onbrand.train.run.fix_limits", fix_limits)
    moves: list[object] = []
    for name in ("first", "second"):
        monkeypatch.setattr(
            AutoencoderKL,
            "to",
            lambda vae, *where, **_: (moves.append((name, *where)), vae)[1],  # noqa: B023
        )
        with pytest.raises(Reached):
            run_training(make_config(run__dir=tmp_path / name), console=QUIET)
    assert ("second", torch.device("cpu")) in moves


def test_previews_do_without_the_safety_checker(
    make_config: MakeConfig, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    form = CLIPConfig(text_config=narrow, vision_config=narrow | {"image_size": 8, "patch_size": 8})
    base = load_base(ModelConfig(base=str(tiny_base)))
    checker = StableDiffusionSafetyChecker(form)
    base.register_modules(safety_checker=checker, feature_extractor=CLIPImageProcessor())
    base.save_pretrained(tmp_path / "base")

    def draw(pipeline: Any, *_: object, **__: object) -> None:
        raise Reached(pipeline.safety_checker)

    monkeypatch.setattr(preview, "draw", draw)
    with pytest.raises(Reached, match="None"):
        run_training(make_config(model__base=tmp_path / "base"), console=QUIET)


def test_the_first_pace_leaves_the_first_preview_out(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def save_preview(*_: object, **__: object) -> None:
        clock.now += 1000

    original = loop.training_loss

    def second_long(*args: object, **options: object) -> Any:
        clock.now += 1
        return original(*args, **options)

    monkeypatch.setattr("onbrand.train.run.save_preview", save_preview)
    monkeypatch.setattr(loop, "training_loss", second_long)
    monkeypatch.setattr("onbrand.train.run._export", lambda *_: (_ for _ in ()).throw(Reached))
    config = make_config(train__steps=2)
    with pytest.raises(Reached):
        run_training(config, console=QUIET)
    assert [row["images_per_second"] for row in read_metrics(Path(config.run.dir))] == [4, 4]


def test_balanced_loss_groups_add_up(make_config: MakeConfig) -> None:
    run = run_training(make_config(start__emphasis=0.5), console=QUIET)
    rows = read_metrics(run)
    assert any("loss_offset_range" in row for row in rows)
    for row in rows:
        parts = [row[key] for key in ("loss_offset_range", "loss_elsewhere") if key in row]
        assert min(parts) - 1e-6 <= row["loss"] <= max(parts) + 1e-6
        assert any(key.startswith("loss_class/") for key in row)
