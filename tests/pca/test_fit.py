"""Statistics against scikit-learn's exact PCA."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onbrand.pca import fit_statistics
from sklearn.decomposition import PCA

SHAPE = (2, 3, 4)
D = 24


def pictures(n, *, seed=0):
    """Latents whose spread falls from one direction to the next, so that components are well defined."""
    g = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -2, D)
    turn = torch.linalg.qr(torch.randn(D, D, generator=g)).Q
    return ((torch.randn(n, D, generator=g) * spread) @ turn + torch.randn(D, generator=g)).view(n, *SHAPE)


@pytest.mark.parametrize("n", [12, 24, 60], ids=["fewer rows than columns", "square", "more rows"])
def test_equals_scikit_learns_full_pca_signs_included(n):
    x = pictures(n)
    mean, components, variances, counts = fit_statistics(
        x, torch.zeros(n, dtype=torch.long), class_names=["mug"], components=5
    )
    oracle = PCA(n_components=5, svd_solver="full").fit(x.flatten(1).double().numpy())
    np.testing.assert_allclose(mean[0].flatten(), oracle.mean_, atol=1e-6)
    np.testing.assert_allclose(components[0].flatten(1), oracle.components_, atol=2e-6)
    np.testing.assert_allclose(variances[0], oracle.explained_variance_, rtol=1e-5)
    assert counts == [n]
    assert {mean.dtype, components.dtype, variances.dtype} == {torch.float32}


def test_each_class_has_its_own_statistics():
    x = torch.cat([pictures(9, seed=1), pictures(7, seed=2)])
    ids = torch.tensor([0] * 9 + [1] * 7)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    both = fit_statistics(x[order], ids[order], class_names=["mug", "shoe"], components=3)
    for c, rows in enumerate((x[:9], x[9:])):
        alone = fit_statistics(rows, torch.zeros(len(rows)).long(), class_names=["one"], components=3)
        torch.testing.assert_close(both.mean[c], alone.mean[0])
        torch.testing.assert_close(both.components[c], alone.components[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(both.variances[c], alone.variances[0])
    assert both.counts == [9, 7]


class Batches:
    """Re-iterable batches, as a cache gives them."""

    def __init__(self, x, ids, size):
        self.x, self.ids, self.size = x, ids, size

    def __iter__(self):
        return zip(self.x.split(self.size), self.ids.split(self.size), strict=True)


@settings(deadline=None, max_examples=10)
@given(size=st.integers(1, 40), n=st.sampled_from([20, 40]))
def test_batches_give_what_one_tensor_gives(size, n):
    x, ids = pictures(n), torch.arange(n) % 2
    whole = fit_statistics(x, ids, class_names=["mug", "shoe"], components=4)
    batched = fit_statistics(Batches(x, ids, size), class_names=["mug", "shoe"], components=4)
    for a, b in zip(whole[:3], batched[:3], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert whole.counts == batched.counts


def test_the_largest_entry_of_every_component_is_positive():
    components = (
        fit_statistics(pictures(20), torch.zeros(20).long(), class_names=["mug"], components=19)
        .components[0]
        .flatten(1)
    )
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()


def test_components_stay_orthonormal_where_the_pictures_do_not_vary():
    x = pictures(3).repeat(3, 1, 1, 1)
    _, components, variances, _ = fit_statistics(x, torch.zeros(9).long(), class_names=["mug"], components=6)
    basis = components[0].flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(6), atol=1e-6, rtol=0)
    assert (variances[0, :2] > 1e-3).all()
    torch.testing.assert_close(variances[0, 2:], torch.zeros(4), atol=1e-6, rtol=0)


def test_the_mean_is_summed_in_float64():
    """Half of the pictures at 1e4 + 1: float32 sums of 4,096 of them are off by far more than 1e-3."""
    x = torch.full((4096, 1, 1, 1), 1e4) + torch.arange(4096).view(-1, 1, 1, 1) % 2
    mean = fit_statistics(x, torch.zeros(4096).long(), class_names=["mug"]).mean
    assert mean.item() == 10000.5


def test_a_class_mean_needs_one_picture_only():
    x = pictures(1)
    mean, components, variances, _ = fit_statistics(x, torch.tensor([0]), class_names=["mug"])
    assert torch.equal(mean, x)
    assert components.shape == (1, 0, *SHAPE)
    assert variances.shape == (1, 0)


def refuse(match, latents, ids, **kwargs):
    with pytest.raises(ValueError, match=match):
        fit_statistics(latents, ids, **{"class_names": ["mug", "shoe"], **kwargs})


def test_bad_input_is_refused():
    x, ids = pictures(6), torch.tensor([0, 0, 0, 0, 1, 1])
    refuse(r"'shoe' has n = 2 pictures, got components = 2", x, ids, components=2)
    refuse(r"class 'shoe' must have at least one picture, got 0", x[:4], ids[:4])
    refuse(r"components must be 0 or more, got -1", x, ids, components=-1)
    refuse(r"class_ids must be in \[0, 2\), got \[0, 2\]", x, torch.tensor([0, 0, 0, 0, 2, 2]))
    refuse(r"class_ids must be one id for each of 6 latents, got 5", x, ids[:5])
    refuse(r"class_ids must be one id for each of 6 latents, got None", x, None)
    refuse(r"latents must be finite, got nan or inf", x / 0, ids)
    refuse(r"latents must share one shape", [(x, ids), (x[:, :1], ids)], None)
    refuse(r"latents must hold at least one picture, got none", [], None)
    refuse(r"iterated more than once, got generator", ((x, ids) for _ in range(1)), None)


def test_a_class_may_lack_pictures_if_allowed():
    x, ids = pictures(6), torch.zeros(6).long()
    mean, components, variances, counts = fit_statistics(
        x, ids, class_names=["mug", "shoe"], components=2, allow_empty=True
    )
    alone = fit_statistics(x, ids, class_names=["mug"], components=2)
    for found, expected in zip((mean, components, variances), alone[:3], strict=True):
        assert torch.equal(found[0], expected[0])
        assert not found[1].any()
    assert counts == [6, 0]
    refuse("latents must hold at least one picture, got none", x[:0], ids[:0], allow_empty=True)


def in_processes(shares, **options):
    """fit_statistics in one thread a share, each with a `reduce` that sums over all of them."""
    barrier = threading.Barrier(len(shares), timeout=20)
    slots = [None] * len(shares)

    def run(rank):
        def reduce(tensor):
            assert tensor.dtype in (torch.float64, torch.int64)
            slots[rank] = tensor
            barrier.wait()
            total = sum(slots[1:], slots[0])
            barrier.wait()
            return total

        x, ids = shares[rank]
        return fit_statistics(x, ids, class_names=["mug", "shoe"], reduce=reduce, **options)

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(run, range(len(shares))))


@pytest.mark.parametrize("empty", [pictures(1)[:0], []], ids=["a tensor of none", "no batches"])
def test_shares_of_the_pictures_give_what_one_process_gets(empty):
    x, ids = pictures(30), torch.arange(30) % 2
    whole = fit_statistics(x, ids, class_names=["mug", "shoe"])
    shares = [(x[:7], ids[:7]), (x[7:], ids[7:]), (empty, ids[:0])]
    for found in in_processes(shares):
        torch.testing.assert_close(found.mean, whole.mean, atol=1e-7, rtol=0)
        assert found.counts == whole.counts


def test_bad_shares_are_refused():
    x, ids = pictures(6), torch.arange(6) % 2
    with pytest.raises(
        ValueError, match="components must be 0 where processes share out the pictures, got 2"
    ):
        in_processes([(x, ids)], components=2)
    with pytest.raises(ValueError, match=r"must share one shape, got \(2, 3, 4\) and others in other proc"):
        in_processes([(x, ids), (x[..., :2], ids)])
    with pytest.raises(ValueError, match="latents must hold at least one picture, got none"):
        in_processes([([], None), ([], None)])
