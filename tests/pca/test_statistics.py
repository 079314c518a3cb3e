"""Statistics: what is merged, saved and loaded."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.pca import Statistics, fit_statistics
from safetensors.torch import save_file
from scipy.linalg import subspace_angles

SHAPE = (2, 3, 4)
D = 24
TENSORS = ("means", "squares", "axes", "variances", "missing")


def pictures(n, *, seed=0, fall=2.0):
    g = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(7))).Q
    x = (torch.randn(n, D, generator=g) * torch.logspace(0, -fall, D)) @ turn
    return (x + 0.3 * torch.randn(D, generator=g)).view(n, *SHAPE)


def fit(x, ids=None, *, names=("mug",), **options):
    ids = torch.zeros(len(x)).long() if ids is None else ids
    return fit_statistics(x, ids, class_names=names, **options)


def test_properties_are_what_numpy_says():
    x, ids = torch.cat([pictures(9), pictures(1, seed=1)]), torch.tensor([0] * 9 + [1])
    statistics = fit(x, ids, names=["mug", "shoe"], reserve=5)
    rows = x.double().numpy()
    np.testing.assert_allclose(statistics.mean[0], rows[:9].mean(0), rtol=1e-6)
    np.testing.assert_allclose(statistics.pixel_variances[0], rows[:9].var(0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(statistics.total_variances[0], rows[:9].var(0, ddof=1).sum(), rtol=1e-12)
    assert not statistics.pixel_variances[1].any()
    assert statistics.total_variances[1] == 0
    assert statistics.mean.shape == statistics.pixel_variances.shape == (2, *SHAPE)
    assert {statistics.mean.dtype, statistics.pixel_variances.dtype} == {torch.float32}
    assert torch.equal(statistics.components(3), statistics.axes[:, :3].reshape(2, 3, *SHAPE))
    for k in (-1, 6):
        with pytest.raises(ValueError, match=rf"components must be in \[0, 5\], the axes known, got {k}"):
            statistics.components(k)


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(deadline=None, max_examples=20)
@given(sizes=sizes, seed=st.integers(0, 99))
def test_merged_equals_fitted_to_all_where_the_axes_reach_the_rank(sizes, seed):
    a, b = (pictures(n, seed=seed + i, fall=1) for i, n in enumerate(sizes))
    both, whole = fit(a, reserve=D).merge(fit(b, reserve=D)), fit(torch.cat([a, b]), reserve=D)
    assert both.counts == whole.counts
    torch.testing.assert_close(both.means, whole.means, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(both.squares, whole.squares, rtol=1e-12, atol=1e-14)
    largest = whole.variances.max().item()
    torch.testing.assert_close(both.variances, whole.variances, rtol=0, atol=1e-5 * largest)
    rebuilt, expected = ((s.axes[0].double().T * s.variances[0]) @ s.axes[0].double() for s in (both, whole))
    torch.testing.assert_close(rebuilt, expected, rtol=0, atol=1e-5 * largest)
    torch.testing.assert_close(both.axes[0] @ both.axes[0].T, torch.eye(D), atol=1e-6, rtol=0)
    assert both.uncertainty().item() <= 1e-5 * largest


@settings(deadline=None, max_examples=20)
@given(
    parts=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    rank=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_merged_axes_are_low_by_no_more_than_the_uncertainty(parts, rank, seed):
    shares = [pictures(n, seed=seed + i) for i, n in enumerate(parts)]
    merged, *others = (fit(share, reserve=rank) for share in shares)
    for other in others:
        merged = merged.merge(other)
    whole = fit(torch.cat(shares), reserve=rank)
    torch.testing.assert_close(merged.means, whole.means, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(merged.squares, whole.squares, rtol=1e-12, atol=1e-14)
    low, slack = whole.variances - merged.variances, 1e-5 * whole.variances.max()
    assert (low >= -slack).all()
    assert (low <= merged.uncertainty() + slack).all()
    rows = torch.cat(shares).flatten(1).double()
    along = ((rows - rows.mean(0)) @ merged.axes[0].double().T).square().sum(0) / (len(rows) - 1)
    assert (along - merged.variances[0] >= -slack).all()
    assert (along - merged.variances[0] <= merged.uncertainty() + slack).all()


def test_the_uncertainty_is_of_use():
    """Where the spectrum falls, merged axes are known well; an exact fit knows them to the end."""
    a, b = pictures(200, fall=4), pictures(100, seed=1, fall=4)
    merged, whole = fit(a, components=6).merge(fit(b, components=6)), fit(torch.cat([a, b]), components=6)
    assert not whole.uncertainty().any()
    assert 0 < merged.uncertainty().item() < 0.1 * merged.variances[0, 1].item()
    assert (
        subspace_angles(merged.axes[0, :2].double().T.numpy(), whole.axes[0, :2].double().T.numpy()).max()
        < 0.05
    )


def test_classes_are_matched_by_name_and_new_ones_come_last():
    x, y, z = pictures(9), pictures(8, seed=1), pictures(7, seed=2)
    left = fit(torch.cat([x, y]), torch.tensor([0] * 9 + [1] * 8), names=["mug", "shoe"], reserve=3)
    right = fit(
        torch.cat([z, x]),
        torch.tensor([0] * 7 + [2] * 9),
        names=["bag", "hat", "mug"],
        reserve=3,
        allow_empty=True,
    )
    merged = left.merge(right)
    assert merged.class_names == ("mug", "shoe", "bag", "hat")
    assert merged.counts == [18, 8, 7, 0]
    torch.testing.assert_close(merged.means[0], left.means[0], rtol=1e-12, atol=1e-14)
    for name in TENSORS:
        assert torch.equal(getattr(merged, name)[1], getattr(left, name)[1])
        assert torch.equal(getattr(merged, name)[2], getattr(right, name)[0])
        assert not getattr(merged, name)[3].any()


def test_a_class_with_fewer_axes_is_filled_up_and_its_lack_is_told():
    x, y = pictures(40), pictures(40, seed=1)
    few, many = fit(x, names=["mug"], reserve=2), fit(y, names=["shoe"], reserve=6)
    merged, all_axes = few.merge(many), fit(x, reserve=6)
    assert merged.axes.shape == (2, 6, D)
    torch.testing.assert_close(merged.axes[0] @ merged.axes[0].T, torch.eye(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(merged.axes[0, :2], few.axes[0], atol=1e-6, rtol=0)
    assert not merged.variances[0, 2:].any()
    assert merged.uncertainty()[0] >= all_axes.variances[0, 2]
    assert merged.uncertainty()[1] == 0


def test_statistics_without_axes_merge_too():
    a, b = pictures(9), pictures(5, seed=1)
    merged, whole = fit(a).merge(fit(b)), fit(torch.cat([a, b]))
    torch.testing.assert_close(merged.squares, whole.squares, rtol=1e-12, atol=1e-14)
    assert merged.axes.shape == (1, 0, D)


def test_another_shape_is_refused():
    one, other = fit(pictures(3)), fit(pictures(3).view(3, 4, 3, 2))
    message = r"statistics must be of shape \(2, 3, 4\) to be merged, got \(4, 3, 2\)"
    with pytest.raises(ValueError, match=message):
        one.merge(other)


@pytest.fixture
def merged():
    return fit(pictures(30), reserve=3).merge(fit(pictures(20, seed=1), names=["mug"], reserve=2))


def test_saved_and_loaded_are_equal_to_the_bit(merged, tmp_path):
    path = tmp_path / "statistics.safetensors"
    merged.save(path)
    loaded = Statistics.load(path)
    for name in TENSORS:
        found, expected = getattr(loaded, name), getattr(merged, name)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    for name in ("class_names", "shape", "counts"):
        assert getattr(loaded, name) == getattr(merged, name)
    assert loaded.missing.any()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_failed_save_leaves_the_old_file_alone(merged, tmp_path, monkeypatch):
    path = tmp_path / "statistics.safetensors"
    merged.save(path)
    before = path.read_bytes()

    def fail(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("onbrand.pca.tensor_file.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        fit(pictures(3)).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_other_files_are_refused_by_name(merged, tmp_path):
    path = tmp_path / "statistics.safetensors"

    def refuse(match):
        with pytest.raises(ValueError, match=f"statistics file .*statistics.safetensors {match}"):
            Statistics.load(path)

    merged.save(path)
    path.write_bytes(path.read_bytes()[:-1])
    refuse("must be readable, got")
    path.write_text("not one")
    refuse("must be readable, got")
    save_file({"mean": torch.zeros(3)}, path)
    refuse(r"must hold means, squares, axes, variances, missing, got \['mean'\]")
    tensors = {name: getattr(merged, name) for name in TENSORS}
    save_file(tensors, path, metadata={"statistics_version": "2"})
    refuse("must be of version 1 at most, got 2")
    save_file(tensors, path, metadata={"statistics_version": "1", "shape": "[2, 3"})
    refuse("must tell class_names, shape and counts, got")
    told = {"class_names": ["mug", "shoe"], "shape": SHAPE, "counts": [3]}
    told = {"statistics_version": "1", **{key: json.dumps(value) for key, value in told.items()}}
    save_file(tensors, path, metadata=told)
    refuse(r"must hold tensors of 2 classes and 24 values")
    with pytest.raises(FileNotFoundError):
        Statistics.load(tmp_path / "none.safetensors")
