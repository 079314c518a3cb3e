"""Checkpoints: what they hold, what damage is noticed, what a failing save leaves behind, which are kept."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from onbrand.configs import Config
from onbrand.train import checkpoint as module
from onbrand.train.checkpoint import (
    MANIFEST,
    checkpoints,
    contents,
    damage,
    load_average,
    newest_complete,
    save_by_name,
    save_checkpoint,
    step_of,
    superseded,
)
from onbrand.train.models import load_base, prepare_networks
from onbrand.train.training import set_up
from safetensors.torch import load_file


@pytest.fixture
def state() -> SimpleNamespace:
    """A model of three weights with an optimizer that has taken a step, in an accelerator of its own."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    save_by_name(accelerator, dict(model.named_parameters()))
    descend(state := SimpleNamespace(accelerator=accelerator, model=model, optimizer=optimizer))
    return state


def descend(state: SimpleNamespace) -> None:
    state.accelerator.backward(state.model(torch.ones(1, 2)).sum())
    state.optimizer.step()
    state.optimizer.zero_grad()


def save(state: SimpleNamespace, run: Path, step: int, **options: object) -> Path:
    return save_checkpoint(state.accelerator, run, step, **{"average": None, "keep": 9} | options)


def weights_of(state: SimpleNamespace) -> list[float]:
    return torch.cat([p.detach().flatten() for p in state.model.parameters()]).tolist()


def test_a_checkpoint_puts_weights_optimizer_and_random_state_back(
    state: SimpleNamespace, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    saved = save(state, tmp_path, 7)
    assert saved == tmp_path / "checkpoints" / "step_7"
    assert not list(tmp_path.rglob("*.partial"))
    before, drawn = weights_of(state), torch.rand(4)
    descend(state)
    after = weights_of(state)
    torch.manual_seed(6)
    state.accelerator.load_state(str(saved))
    assert weights_of(state) == before
    assert torch.equal(torch.rand(4), drawn)
    descend(state)
    assert weights_of(state) == after  # Adam's moments and step count came back too


def test_the_average_comes_back_with_its_count(state: SimpleNamespace, tmp_path: Path) -> None:
    average = {"weight": torch.tensor([[1.5, -2.0]]), "bias": torch.tensor([0.25])}
    saved = save(state, tmp_path, 3, average=average, average_steps=17)
    restored = EMAModel(state.model.parameters())
    load_average(restored, saved, ["weight", "bias"])
    assert restored.optimization_step == 17
    assert [weight.tolist() for weight in restored.shadow_params] == [[[1.5, -2.0]], [0.25]]


def test_the_manifest_lists_every_file(state: SimpleNamespace, tmp_path: Path) -> None:
    saved = save(state, tmp_path, 1, average={"weight": torch.ones(2)})
    files = {file.relative_to(saved).as_posix() for file in saved.rglob("*") if file.is_file()}
    assert {"model.safetensors", "average.safetensors", MANIFEST} < files
    assert set(contents(saved)) == files - {MANIFEST}
    assert all(size == (saved / name).stat().st_size for name, (size, _) in contents(saved).items())
    assert damage(saved) == ""


def flip(file: Path, place: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda folder: (folder / "optimizer.bin").unlink(), r"optimizer.bin is missing$"),
    "truncated": (
        lambda folder: cut(folder / "model.safetensors"),
        r"model.safetensors has \d+ bytes instead of \d+$",
    ),
    "flipped": (
        lambda folder: flip(folder / "model.safetensors"),
        r"model.safetensors has changed since it was written$",
    ),
    "flipped average": (
        lambda folder: flip(folder / "average.safetensors"),
        r"average.safetensors has changed since it was written$",
    ),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), r"its manifest.json cannot be read \(.*\)$"),
    "half a manifest": (lambda folder: cut(folder / MANIFEST), r"its manifest.json cannot be read \(.*\)$"),
    "a folder": (
        lambda folder: ((folder / "optimizer.bin").unlink(), (folder / "optimizer.bin").mkdir()),
        r"optimizer.bin is missing$",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    state: SimpleNamespace, tmp_path: Path, kind: str
) -> None:
    first, second = (save(state, tmp_path, step, average={"w": torch.ones(2)}) for step in (2, 10))
    spoil, message = DAMAGES[kind]
    told: list[str] = []
    assert newest_complete(state.accelerator, tmp_path, warn=told.append) == second
    assert told == []
    spoil(second)
    assert newest_complete(state.accelerator, tmp_path, warn=told.append) == first
    assert len(told) == 1
    assert told[0].startswith(f"checkpoint {second} is skipped: ")
    assert_matches(told[0], message)


def assert_matches(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raise ValueError(text)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(
    state: SimpleNamespace, tmp_path: Path
) -> None:
    told: list[str] = []
    assert newest_complete(state.accelerator, tmp_path, warn=told.append) is None
    flip(save(state, tmp_path, 1) / "model.safetensors")
    (save(state, tmp_path, 2) / "optimizer.bin").unlink()
    message = (
        r"checkpoints must hold a complete checkpoint to go on from, got 2 damaged "
        r"\(the oldest: model.safetensors has changed since it was written\); delete them"
    )
    with pytest.raises(ValueError, match=message):
        newest_complete(state.accelerator, tmp_path, warn=told.append)
    assert [text.split(" is skipped")[0].rsplit("_", 1)[1] for text in told] == ["2", "1"]


def test_weights_of_another_model_are_refused(state: SimpleNamespace, tmp_path: Path) -> None:
    saved = save(state, tmp_path, 1)
    other = Accelerator(cpu=True)
    model = other.prepare(torch.nn.Linear(2, 1, bias=False))
    save_by_name(other, dict(model.named_parameters()))
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"step_1 must hold the weights that are trained, got 2 of 1$"):
        other.load_state(str(saved))
    assert torch.equal(model.weight, before)


def test_weights_are_kept_by_name_whatever_they_are_wrapped_in(
    state: SimpleNamespace, tmp_path: Path
) -> None:
    stored = load_file(save(state, tmp_path, 1) / "model.safetensors")
    assert {name: tuple(weight.shape) for name, weight in stored.items()} == {"weight": (1, 2), "bias": (1,)}
    wrapped = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 1)})
    other = Accelerator(cpu=True)
    own = other.prepare(wrapped)
    save_by_name(other, dict(zip(("weight", "bias"), own.parameters(), strict=True)))
    other.load_state(str(tmp_path / "checkpoints" / "step_1"))
    assert torch.equal(wrapped["module"].weight, state.model.weight)


def test_every_changed_bit_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "random_states_0.pkl").write_bytes(b"states")
    whole = module.json.dumps(contents(tmp_path), indent=1).encode()
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            (tmp_path / MANIFEST).write_bytes(changed)
            assert damage(tmp_path), (place, bit)
    (tmp_path / MANIFEST).write_bytes(whole)
    assert damage(tmp_path) == ""


@pytest.mark.parametrize(
    "problem",
    [
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"),
    ],
)
def test_a_save_that_fails_leaves_what_was_there(
    state: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    older = save(state, tmp_path, 1)
    before = {file: file.read_bytes() for file in older.rglob("*") if file.is_file()}

    def half(folder: str) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"x" * 2**20)
        raise problem

    monkeypatch.setattr(state.accelerator, "save_state", half)
    message = (
        r"^checkpoint .*/checkpoints/step_2 must be written whole, got (OSError|RuntimeError): .*"
        r"(No space left|write failed).* after 1 MiB with \d+ MiB free; what was saved before is untouched$"
    )
    with pytest.raises(OSError, match=message):
        save(state, tmp_path, 2, keep=1)
    assert [path.name for path in older.parent.iterdir()] == ["step_1"]
    assert {file: file.read_bytes() for file in older.rglob("*") if file.is_file()} == before
    monkeypatch.undo()
    assert save(state, tmp_path, 2, keep=1).exists()


@pytest.mark.parametrize("writer", ["save_file", "settle"])
def test_a_disk_that_fills_up_later_is_a_failing_save_too(
    state: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, writer, full)
    with pytest.raises(OSError, match=r"step_2 must be written whole, got .*No space left"):
        save(state, tmp_path, 2, average={"w": torch.ones(2)})
    assert not list((tmp_path / "checkpoints").iterdir())


def test_what_a_killed_save_left_is_neither_found_nor_in_the_way(
    state: SimpleNamespace, tmp_path: Path
) -> None:
    left = tmp_path / "checkpoints" / "step_2.partial"
    left.mkdir(parents=True)
    (left / "old").write_text("from another time")
    assert newest_complete(state.accelerator, tmp_path) is None
    saved = save(state, tmp_path, 2)
    assert not left.exists()
    assert not (saved / "old").exists()
    assert damage(saved) == ""


def test_a_step_is_saved_again_over_its_damaged_self(state: SimpleNamespace, tmp_path: Path) -> None:
    flip(save(state, tmp_path, 4) / "model.safetensors")
    assert damage(save(state, tmp_path, 4)) == ""
    assert [step_of(path) for path in checkpoints(tmp_path)] == [4]


def test_the_newest_and_the_best_are_kept(state: SimpleNamespace, tmp_path: Path) -> None:
    losses = {2: 0.5, 4: 0.3, 6: 0.4, 8: 0.6, 10: 0.35}
    kept = []
    for step in (2, 4, 6, 8, 10):
        held_out = {known: loss for known, loss in losses.items() if known <= step}
        save(state, tmp_path, step, keep=2, held_out=held_out)
        kept.append([step_of(path) for path in checkpoints(tmp_path)])
    assert kept == [[2], [2, 4], [4, 6], [4, 6, 8], [4, 8, 10]]


def test_without_held_out_losses_only_the_newest_are_kept(state: SimpleNamespace, tmp_path: Path) -> None:
    for step in (2, 4, 10):
        save(state, tmp_path, step, keep=1)
        assert [step_of(path) for path in checkpoints(tmp_path)] == [step]


def test_a_best_step_without_a_checkpoint_keeps_none_in_its_place() -> None:
    found = [Path(f"step_{step}") for step in (2, 4, 6)]
    assert superseded(found, {3: 0.1, 4: 0.2, 2: 0.3}, newest=6, keep=1) == [Path("step_2")]
    assert superseded(found, {3: 0.1}, newest=6, keep=2) == [Path("step_2")]
    assert superseded(found, {}, newest=6, keep=5) == []


def test_damaged_checkpoints_ahead_of_a_resume_do_not_count_as_the_newest(
    state: SimpleNamespace, tmp_path: Path
) -> None:
    for step in (2, 4, 6):
        save(state, tmp_path, step)
    for step in (4, 6):
        flip(tmp_path / "checkpoints" / f"step_{step}" / "model.safetensors")
    assert step_of(newest_complete(state.accelerator, tmp_path)) == 2
    save(state, tmp_path, 3, keep=2, held_out={6: 0.1})
    assert [step_of(path) for path in checkpoints(tmp_path)] == [2, 3]


def test_a_held_out_loss_that_is_no_number_is_never_the_best() -> None:
    found = [Path(f"step_{step}") for step in (2, 4, 6)]
    held_out = {2: float("nan"), 4: 0.3, 6: 0.4}
    assert superseded(found, held_out, newest=6, keep=1) == [Path("step_2")]


def test_a_lora_checkpoint_holds_trained_weights_alone(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = make_config(model__method="lora", model__lora__rank=2)
    networks = prepare_networks(load_base(config.model), config.model)
    training = set_up(config, networks, Accelerator(cpu=True), run=tmp_path)
    saved = save_checkpoint(training.accelerator, tmp_path, 2, average=training.averaged_weights(), keep=1)
    stored = load_file(saved / "model.safetensors")
    trained = dict(networks.denoiser.trained())
    assert set(stored) == set(trained) == set(load_file(saved / "average.safetensors"))
    assert all("lora" in name for name in stored)
    frozen = networks.pipeline.unet.conv_in.weight.detach().clone()
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(1)
    again = set_up(config, networks, Accelerator(cpu=True), run=tmp_path)
    assert again.first_step == 2
    assert all(torch.equal(weight, stored[name]) for name, weight in again.weights.items())
    assert torch.equal(networks.pipeline.unet.conv_in.weight, frozen)
