"""A learned coupling's file: there and back, what it draws, and which files are refused by name."""

import json

import pytest
import torch
from onbrand.inference.couplings import FromMatrix
from onbrand.inference.learned import FORMAT_VERSION, LearnedCoupling, prompts_fingerprint
from safetensors import safe_open
from safetensors.torch import save_file

MATRIX = torch.tensor([[0.6, 0.8, 0.0], [-0.6, 0.0, 0.8]], dtype=torch.float64)


@pytest.fixture
def coupling():
    return LearnedCoupling(
        MATRIX,
        reward="ssim_diversity",
        base_model="some/model",
        prompts=prompts_fingerprint(["a mug", "a shoe"]),
        history=(-0.5, -0.25),
        settings={"steps": 2, "sampler": ["DDIMScheduler", 20, None]},
    )


def write(path, *, tensors=None, version=FORMAT_VERSION, story=None, **changes):
    """A file as `save` writes it, with changes."""
    told = {"reward": "r", "base_model": "b", "prompts": "p", "history": [0.5], "settings": {}} | changes
    text = json.dumps(told) if story is None else story
    metadata = {"learned_coupling_version": str(version), "learned_coupling": text}
    save_file({"matrix": MATRIX} if tensors is None else tensors, path, metadata=metadata)
    return path


def test_there_and_back(coupling, tmp_path):
    path = tmp_path / "new" / "split.safetensors"
    coupling.save(path)
    back = LearnedCoupling.load(path)
    assert torch.equal(back.matrix, MATRIX)
    for name in ("reward", "base_model", "prompts", "history", "settings"):
        assert getattr(back, name) == getattr(coupling, name)
    assert [file.name for file in path.parent.iterdir()] == ["split.safetensors"]
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["learned_coupling"])["reward"] == "ssim_diversity"


def test_it_draws_as_its_matrix(coupling):
    drawn, expected = (
        source.draw(2, (4, 8, 8), torch.Generator().manual_seed(3))
        for source in (coupling, FromMatrix(MATRIX))
    )
    assert torch.equal(drawn, expected)
    with pytest.raises(ValueError, match=r"num_images must be 2.*got 3"):
        coupling.draw(3, (4, 8, 8), None)


def test_the_correlation_is_that_of_its_draws(coupling):
    torch.testing.assert_close(coupling.correlation, torch.tensor([[1, -0.36], [-0.36, 1]]).double())
    drawn = coupling.draw(2, (1, 200, 200), torch.Generator().manual_seed(0))
    assert float(torch.corrcoef(drawn.flatten(1))[0, 1]) == pytest.approx(-0.36, abs=0.02)


def test_fingerprints_tell_prompts_apart():
    first = prompts_fingerprint(["a mug", "a shoe"])
    assert first == prompts_fingerprint(("a mug", "a shoe"))
    assert len({first, prompts_fingerprint(["a shoe", "a mug"]), prompts_fingerprint(["a mug a shoe"])}) == 3
    assert len(first) == 64


@pytest.mark.parametrize("matrix", [2 * MATRIX, MATRIX[0], torch.full((2, 2), float("nan"))])
def test_other_rows_are_refused(matrix, tmp_path):
    with pytest.raises(ValueError, match="matrix must"):
        LearnedCoupling(matrix, reward="r")
    path = write(tmp_path / "bad.safetensors", tensors={"matrix": matrix})
    with pytest.raises(
        ValueError, match=r"^learned coupling .*bad.safetensors must be usable: .*matrix must"
    ):
        LearnedCoupling.load(path)


def test_damaged_and_foreign_files_are_refused(coupling, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError):
        LearnedCoupling.load(path)
    coupling.save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"^learned coupling .*a.safetensors must be readable, got "):
        LearnedCoupling.load(path)
    save_file({"weight": MATRIX}, path)
    with pytest.raises(
        ValueError, match=r"^learned.*must hold a learned matrix, got \['weight'\] of version ''$"
    ):
        LearnedCoupling.load(path)
    save_file({"matrix": MATRIX}, path)
    with pytest.raises(
        ValueError, match=r"^learned.*must hold a learned matrix, got \['matrix'\] of version ''$"
    ):
        LearnedCoupling.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": FORMAT_VERSION + 1}, f"must be of version {FORMAT_VERSION} at most, got 2"),
        ({"story": "{"}, "must tell reward, base_model.*, got JSONDecodeError: "),
        ({"story": "[1]"}, "must tell reward, base_model.*, got TypeError: "),
        ({"story": '{"reward": "r"}'}, "must tell reward, base_model.*, got KeyError: 'base_model'"),
        ({"reward": 3}, "must tell reward as str, got int"),
        ({"history": "x"}, "must tell history as list, got str"),
        ({"history": [1.0, "x"]}, "must tell history in finite numbers, got others"),
        ({"history": [float("nan")]}, "must tell history in finite numbers, got others"),
    ],
)
def test_what_a_file_tells_is_checked(tmp_path, changes, message):
    path = write(tmp_path / "a.safetensors", **changes)
    with pytest.raises(ValueError, match=rf"^learned coupling .*a.safetensors {message}"):
        LearnedCoupling.load(path)
    assert LearnedCoupling.load(write(tmp_path / "b.safetensors")).history == (0.5,)
