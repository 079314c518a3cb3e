"""Block Krylov iteration against the exact eigenvectors of matrices that can be held."""

import pytest
import torch
from onbrand.pca import krylov
from onbrand.pca.krylov import EXTRA, MAX_PASSES, leading_axes
from scipy.linalg import subspace_angles


def matrix(values, *, seed=0):
    """A symmetric matrix of these eigenvalues, and its eigenvectors."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64)).Q
    return turn @ torch.diag(values) @ turn.T, turn


FALLING = 300.0 * torch.arange(1, 401, dtype=torch.float64) ** -1.5


def test_finds_the_leading_eigenvectors_within_its_tolerance():
    S, turn = matrix(FALLING)
    passes = []

    def apply(blocks):
        passes.append({key: block.shape for key, block in blocks.items()})
        assert blocks["one"].dtype == torch.float32
        return {"one": S @ blocks["one"].double()}

    found = leading_axes(apply, ["one"], 400, 6)["one"]
    assert subspace_angles(found.axes.double().T.numpy(), turn[:, :6].numpy()).max() < 3e-3
    torch.testing.assert_close(found.squares, FALLING[:6], rtol=1e-5, atol=0)
    assert (FALLING[:6] - found.squares).abs().max() <= found.missing <= 1e-3 * FALLING[0]
    assert 2 <= len(passes) < MAX_PASSES
    assert {shape for one in passes for shape in one.values()} == {(400, 6 + EXTRA)}


def test_each_matrix_is_left_alone_once_it_is_done():
    easy, hard = matrix(0.01 ** torch.arange(400).double())[0], matrix(FALLING)[0]
    calls = {"easy": 0, "hard": 0}

    def apply(blocks):
        for key in blocks:
            calls[key] += 1
        return {key: {"easy": easy, "hard": hard}[key] @ block.double() for key, block in blocks.items()}

    found = leading_axes(apply, ["easy", "hard"], 400, 4)
    assert calls["easy"] < calls["hard"]
    torch.testing.assert_close(found["hard"].squares, FALLING[:4], rtol=1e-5, atol=0)
    # 1e-8 of the largest is what float32 products cannot tell from 0.
    torch.testing.assert_close(
        found["easy"].squares, torch.tensor([1, 0.01, 1e-4, 1e-6]).double(), rtol=1e-3, atol=0
    )


def test_only_the_axes_asked_for_must_reach_the_tolerance():
    S, _ = matrix(FALLING)
    counts = []
    for converged in (1, 6):
        calls = []
        leading_axes(
            lambda blocks, calls=calls: calls.append(0) or {0: S @ blocks[0].double()},
            [0], 400, 6, converged=converged,
        )  # fmt: skip
        counts.append(len(calls))
    assert counts[0] < counts[1]


def test_stops_at_the_most_passes_and_tells_what_is_open(monkeypatch):
    monkeypatch.setattr(krylov, "TOLERANCE", 0.0)
    monkeypatch.setattr(krylov, "ROUNDING", 0.0)
    values = torch.linspace(2, 1, 400, dtype=torch.float64)
    S, _ = matrix(values)
    calls = []
    found = leading_axes(lambda blocks: calls.append(0) or {0: S @ blocks[0].double()}, [0], 400, 3)[0]
    assert len(calls) == MAX_PASSES
    too_low = (values[:3] - found.squares).max()
    assert 1e-6 < too_low <= found.missing


@pytest.mark.parametrize("rank", [0, 1, 3, 10])
def test_a_matrix_of_low_rank_leaves_axes_without_variance(rank):
    values = torch.zeros(10, dtype=torch.float64)
    values[:rank] = 1.0 / torch.arange(1, rank + 1)
    S, _ = matrix(values)
    found = leading_axes(lambda blocks: {0: S @ blocks[0].double()}, [0], 10, 10)[0]
    torch.testing.assert_close(found.squares, values, atol=1e-6, rtol=0)
    assert not found.squares[rank:].any()
    torch.testing.assert_close(found.axes @ found.axes.T, torch.eye(10), atol=1e-6, rtol=0)


def test_processes_stop_together_when_one_of_them_says_so():
    S, _ = matrix(FALLING)
    calls = []

    def apply(blocks):
        calls.append(list(blocks))
        return {key: S @ block.double() for key, block in blocks.items()}

    def agree(done):
        return torch.tensor([1, 0]) if len(done) == 2 else done

    leading_axes(apply, ["a", "b"], 400, 6, agree=agree)
    assert calls[0] == ["a", "b"]
    assert calls[1:] == [["b"]] * (len(calls) - 1)
    assert len(calls) > 2
