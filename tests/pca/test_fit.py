"""Statistics against scikit-learn's exact PCA, whichever way they are computed."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onbrand.data.processes import Processes
from onbrand.pca import fit as fitting
from onbrand.pca import fit_statistics
from onbrand.pca import passes as reading
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

SHAPE = (2, 3, 4)
D = 24
NAMES = ["mug", "shoe"]

# Constants of pca/fit.py by the way they force upon small data. Exact is by the products of pictures where
# these are the fewer, else by those of values.
ITERATED = {"GRAM_ROWS": 0, "SCATTER_WIDTH": 0, "NEARLY_ALL": 0}
WAYS = {
    "exact": {},
    "iterated, held": ITERATED,
    "iterated, read again": {**ITERATED, "HELD_BYTES": 1},
}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def every_way(request, monkeypatch):
    for name, value in request.param.items():
        monkeypatch.setattr(fitting, name, value)


def pictures(n, *, seed=0, shape=SHAPE, fall=2.0):
    """Latents whose spread falls from one direction to the next, so that components are well defined."""
    d = int(np.prod(shape))
    g = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -fall, d)
    turn = torch.linalg.qr(torch.randn(d, d, generator=g)).Q
    return ((torch.randn(n, d, generator=g) * spread) @ turn + torch.randn(d, generator=g)).view(n, *shape)


def fit_one(x, **options):
    """Of one class."""
    return fit_statistics(x, torch.zeros(len(x)).long(), class_names=["mug"], **options)


def check_against_scikit_learn(statistics, c, x, k):
    rows = x.flatten(1).double().numpy()
    with np.errstate(invalid="ignore"):  # its explained_variance_ratio_, where nothing varies
        oracle = PCA(svd_solver="full").fit(rows)
    expected = np.zeros(k)
    expected[: len(oracle.explained_variance_)] = oracle.explained_variance_[:k]
    np.testing.assert_allclose(statistics.means[c], oracle.mean_, atol=1e-5)
    known = expected > 1e-6 * expected.max(initial=0)
    np.testing.assert_allclose(statistics.variances[c, :k][known], expected[known], rtol=1e-4)
    np.testing.assert_allclose(statistics.variances[c, :k][~known], 0, atol=2e-6 * expected.max(initial=0))
    np.testing.assert_allclose(
        statistics.squares[c] / max(1, len(x) - 1), rows.var(0, ddof=min(1, len(x) - 1)), atol=1e-9
    )
    axes = statistics.axes[c].double()
    torch.testing.assert_close(axes @ axes.T, torch.eye(len(axes)).double(), atol=1e-6, rtol=0)
    clear = [i + 1 for i in range(k - 1) if expected[i + 1] < 0.8 * expected[i] and known[i]]
    if clear:
        angles = subspace_angles(axes[: clear[-1]].T.numpy(), oracle.components_[: clear[-1]].T)
        assert angles.max() <= 2e-3


CATALOGUES = {
    "fewer pictures than values": (pictures(12), 5),
    "as many": (pictures(24), 5),
    "more": (pictures(60), 5),
    "no components": (pictures(9), 0),
    "all of them": (pictures(9), 8),
    "duplicated pictures": (pictures(4).repeat(5, 1, 1, 1), 6),
    "one value constant": (pictures(40) * (torch.arange(D).view(SHAPE) > 0) + 3, 4),
    "nothing varies": (torch.full((7, *SHAPE), 1.7), 3),
}


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize(("x", "k"), CATALOGUES.values(), ids=CATALOGUES)
def test_equals_scikit_learns_full_pca(x, k):
    statistics = fit_one(x, components=k)
    check_against_scikit_learn(statistics, 0, x, k)
    assert statistics.counts == [len(x)]
    assert statistics.shape == SHAPE
    kinds = [t.dtype for t in (statistics.means, statistics.squares, statistics.axes, statistics.variances)]
    assert kinds == [torch.float64, torch.float64, torch.float32, torch.float64]


@pytest.mark.usefixtures("every_way")
def test_signs_are_scikit_learns():
    x = pictures(60, fall=6)
    oracle = PCA(n_components=4, svd_solver="full").fit(x.flatten(1).double().numpy())
    np.testing.assert_allclose(fit_one(x, components=4).axes[0], oracle.components_, atol=2e-3)


@pytest.mark.usefixtures("every_way")
def test_each_class_has_its_own_statistics():
    x = torch.cat([pictures(30, seed=1), pictures(7, seed=2), pictures(1, seed=3)])
    ids = torch.tensor([0] * 30 + [1] * 7 + [2])
    order = torch.randperm(38, generator=torch.Generator().manual_seed(0))
    found = fit_statistics(x[order], ids[order], class_names=["mug", "shoe", "bag"], reserve=6)
    for c in range(2):
        check_against_scikit_learn(found, c, x[ids == c], 6)
    assert torch.equal(found.mean[2], x[37])
    assert not found.variances[2].any()
    assert not found.squares[2].any()
    assert found.counts == [30, 7, 1]


@pytest.mark.parametrize(
    ("n", "way", "by", "passes"),
    [
        (20, "exact", "axes_of_rows", 2),
        (60, "exact", "finished_axes", 2),
        (60, "iterated, held", "leading_axes", 2),
        (60, "iterated, read again", "leading_axes", 4),
    ],
)
def test_these_ways_are_taken(monkeypatch, n, way, by, passes):
    for name, value in WAYS[way].items():
        monkeypatch.setattr(fitting, name, value)
    called = []
    for name in ("axes_of_rows", "finished_axes", "leading_axes"):
        original = getattr(fitting, name)
        monkeypatch.setattr(
            fitting, name, lambda *a, _o=original, _n=name, **k: called.append(_n) or _o(*a, **k)
        )
    source = Batches(pictures(n), torch.zeros(n).long(), 7)
    fit_statistics(source, class_names=["mug"], components=2)
    assert called == [by]
    assert source.read == n * passes


def test_large_latents_are_iterated_and_equal_scikit_learns():
    """Of no patched size: more than 512 pictures of more than 1,024 values."""
    shape = (3, 20, 20)
    x = pictures(700, shape=shape, fall=20)
    found = fit_one(x, components=4, reserve=2)
    assert 0 < found.uncertainty()[0] < 0.01 * found.variances[0, 3]
    check_against_scikit_learn(found, 0, x, 4)


@pytest.mark.usefixtures("every_way")
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 40), n=st.sampled_from([20, 40]), seed=st.integers(0, 99))
def test_neither_batches_nor_order_matter(size, n, seed):
    x, ids = pictures(n, fall=6), torch.arange(n) % 2
    whole = fit_statistics(x, ids, class_names=NAMES, components=4)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    check_same(fit_statistics(Batches(x[order], ids[order], size), class_names=NAMES, components=4), whole)


def check_same(found, expected):
    """Up to float32's rounding."""
    torch.testing.assert_close(found.means, expected.means, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.squares, expected.squares, atol=0, rtol=1e-12)
    torch.testing.assert_close(found.axes, expected.axes, atol=3e-4, rtol=0)
    torch.testing.assert_close(
        found.variances, expected.variances, atol=1e-6 * expected.variances.max().item(), rtol=0
    )
    assert found.counts == expected.counts


class Batches:
    """Re-iterable batches, as a cache gives them; `read` counts the pictures."""

    def __init__(self, x, ids, size, fail_at=None):
        self.x, self.ids, self.size = x, ids, size
        self.read, self.fail_at = 0, fail_at

    def __iter__(self):
        for x, ids in zip(self.x.split(self.size), self.ids.split(self.size), strict=True):
            self.read += len(x)
            if self.fail_at is not None and self.read > self.fail_at:
                raise OSError("the disk is gone")
            yield x, ids


class BatchesByClass(Batches):
    """Batches that can be asked for some classes; `asked` lists what was."""

    asked = ()

    def of(self, class_ids):
        self.asked += (tuple(class_ids),)
        mine = torch.isin(self.ids, torch.tensor(list(class_ids)))
        for x, ids in zip(self.x[mine].split(self.size), self.ids[mine].split(self.size), strict=True):
            self.read += len(x)
            if self.fail_at is not None and self.read > self.fail_at:
                raise OSError("the disk is gone")
            yield x, ids


@pytest.mark.usefixtures("every_way")
def test_a_source_is_asked_for_the_classes_needed():
    x, ids = pictures(40, fall=6), torch.arange(40) % 2
    source = BatchesByClass(x, ids, 7)
    check_same(
        fit_statistics(source, class_names=NAMES, components=4),
        fit_statistics(x, ids, class_names=NAMES, components=4),
    )
    assert source.asked


def test_what_fits_is_read_twice_whatever_the_group():
    x, ids = pictures(40), torch.arange(40) % 2
    source = BatchesByClass(x, ids, 7)
    fit_statistics(source, class_names=NAMES)
    assert source.read == 40
    fit_statistics(source, class_names=NAMES, components=4)
    assert source.read == 120
    assert source.asked == ((0, 1),)


def test_groups_keep_below_the_bytes_held(monkeypatch):
    x, ids = pictures(60), torch.arange(60) % 6
    a_class = 10 * D * 4
    monkeypatch.setattr(fitting, "HELD_BYTES", 4 * 2 * a_class)  # a quarter where asking costs nothing
    source = BatchesByClass(x, ids, 7)
    fit_statistics(source, class_names=list("abcdef"), components=4)
    assert source.asked == ((0, 1), (2, 3), (4, 5))
    monkeypatch.setattr(fitting, "HELD_BYTES", 2 * a_class)
    source = Batches(x, ids, 7)
    fit_statistics(source, class_names=list("abcdef"), components=4)
    assert source.read == 60 * (1 + 3)


def test_the_largest_entry_of_every_component_is_positive():
    components = fit_one(pictures(20), components=19).components(19)[0].flatten(1)
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.usefixtures("every_way")
def test_of_equal_entries_the_first_is_positive():
    """All pictures on one line along (1, -1, ...): rounding must not choose the sign."""
    line = torch.ones(D)
    line[1::2] = -1
    for seed in range(3):
        far = torch.randn(10, 1, generator=torch.Generator().manual_seed(seed))
        found = fit_one((far * line).view(-1, *SHAPE), components=1).axes[0, 0]
        torch.testing.assert_close(found, line / D**0.5)


@pytest.mark.usefixtures("every_way")
def test_reserve_goes_as_far_as_the_values_and_is_orthonormal_beyond_the_rank():
    statistics = fit_one(pictures(3).repeat(3, 1, 1, 1), components=2, reserve=100)
    assert statistics.axes.shape == (1, D, D)
    torch.testing.assert_close(statistics.axes[0] @ statistics.axes[0].T, torch.eye(D), atol=1e-6, rtol=0)
    assert (statistics.variances[0, :2] > 1e-3).all()
    assert not statistics.variances[0, 2:].any()


def test_the_mean_is_summed_in_float64():
    """Half of the pictures at 1e4 + 1: float32 sums of 4,096 of them are off by far more than 1e-3."""
    x = torch.full((4096, 1, 1, 1), 1e4) + torch.arange(4096).view(-1, 1, 1, 1) % 2
    statistics = fit_one(x)
    assert statistics.mean.item() == 10000.5
    assert statistics.squares.item() == pytest.approx(1024, rel=1e-12)


def test_a_class_mean_needs_one_picture_only():
    x = pictures(1)
    statistics = fit_one(x)
    assert torch.equal(statistics.mean, x)
    assert statistics.axes.shape == (1, 0, D)
    assert statistics.variances.shape == (1, 0)


def refuse(match, latents, ids, **kwargs):
    with pytest.raises(ValueError, match=match):
        fit_statistics(latents, ids, **{"class_names": NAMES, **kwargs})


def test_bad_input_is_refused():
    x, ids = pictures(6), torch.tensor([0, 0, 0, 0, 1, 1])
    refuse(r"'shoe' has n = 2 pictures, got components = 2", x, ids, components=2)
    refuse(r"class 'shoe' must have at least one picture, got 0", x[:4], ids[:4])
    refuse(r"components must be 0 or more, got -1", x, ids, components=-1)
    refuse(r"reserve must be 0 or more, got -1", x, ids, reserve=-1)
    refuse(r"components must be at most 24, the values of a latent, got 25", x, ids, components=25)
    refuse(r"class_ids must be in \[0, 2\), got \[0, 2\]", x, torch.tensor([0, 0, 0, 0, 2, 2]))
    refuse(r"class_ids must be one id for each of 6 latents, got 5", x, ids[:5])
    refuse(r"class_ids must be one id for each of 6 latents, got None", x, None)
    refuse(r"latents must share one shape", [(x, ids), (x[:, :1], ids)], None)
    refuse(r"latents must hold at least one picture, got none", [], None)
    refuse(r"iterated more than once, got generator", ((x, ids) for _ in range(1)), None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_picture_that_is_not_finite_is_named(bad):
    x, ids = pictures(6), torch.tensor([0, 0, 0, 0, 1, 1])
    x[4, 1, 2, 3] = bad
    refuse(r"latents must be finite, got nan or inf in picture 4 \(class 'shoe'\)", Batches(x, ids, 3), None)
    refuse(r"got nan or inf in picture four.png$", x, ids, name_of={4: "four.png"}.__getitem__)


@pytest.mark.usefixtures("every_way")
def test_pictures_that_change_between_passes_are_refused():
    class Growing(Batches):
        def of(self, class_ids):
            return [(self.x[:1], self.ids[:1]), *self]

    x, ids = pictures(30), torch.arange(30) % 2
    message = r"latents must be the same on every pass, got 15 and then 16 of class 'mug'"
    refuse(message, Growing(x, ids, 7), None, components=2)


def test_a_class_may_lack_pictures_if_allowed():
    x, ids = pictures(6), torch.zeros(6).long()
    found = fit_statistics(x, ids, class_names=NAMES, components=2, allow_empty=True)
    alone = fit_one(x, components=2)
    for name in ("means", "squares", "axes", "variances"):
        assert torch.equal(getattr(found, name)[0], getattr(alone, name)[0])
        assert not getattr(found, name)[1].any()
    assert found.counts == [6, 0]
    refuse("latents must hold at least one picture, got none", x[:0], ids[:0], allow_empty=True)


def in_processes(shares, **options):
    """fit_statistics in one thread a share, each a process to itself."""
    barrier = threading.Barrier(len(shares), timeout=20)
    slots = [[] for _ in shares]

    def run(rank):
        def gather(own):
            assert all(tensor.device.type == "cpu" for tensor in own)
            slots[rank] = own
            barrier.wait()
            joined = [tensor for part in slots for tensor in part]
            barrier.wait()
            return joined

        share = shares[rank]
        x, ids = share if isinstance(share, tuple) else (share, None)
        processes = Processes(index=rank, count=len(shares), gather=gather)
        return fit_statistics(x, ids, class_names=NAMES, processes=processes, **options)

    with ThreadPoolExecutor(len(shares)) as pool:
        return [future.result() for future in [pool.submit(run, rank) for rank in range(len(shares))]]


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("empty", [pictures(1)[:0], []], ids=["a tensor of none", "no batches"])
def test_shares_of_the_pictures_give_what_one_process_gets(empty):
    x, ids = pictures(40, fall=6), torch.arange(40) % 2
    whole = fit_statistics(x, ids, class_names=NAMES, components=3, reserve=1)
    shares = [(x[:7], ids[:7]), (x[7:], ids[7:]), (empty, ids[:0])]
    first, *others = in_processes(shares, components=3, reserve=1)
    check_same(first, whole)
    for other in others:
        for name in ("means", "squares", "axes", "variances", "missing"):
            assert torch.equal(getattr(other, name), getattr(first, name))


@settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.integers(0, 60), max_size=3))
def test_the_number_of_processes_does_not_matter(cuts):
    x, ids = pictures(60, fall=6), torch.arange(60) % 2
    ends = [0, *sorted(cuts), 60]
    shares = [(x[a:b], ids[a:b]) for a, b in pairwise(ends)]
    whole = fit_statistics(x, ids, class_names=NAMES, components=4)
    for found in in_processes(shares, components=4):
        check_same(found, whole)


def test_processes_that_round_differently_still_get_the_same(monkeypatch):
    def rounded(rows, rank, *, mean):
        found = exact(rows, rank, mean=mean)
        return found._replace(axes=found.axes + 1e-6 * torch.rand(()), squares=found.squares + torch.rand(()))

    exact = fitting.axes_of_rows
    monkeypatch.setattr(fitting, "axes_of_rows", rounded)
    x, ids = pictures(40), torch.arange(40) % 2
    first, second = in_processes([(x[:9], ids[:9]), (x[9:], ids[9:])], components=3)
    assert torch.equal(first.axes, second.axes)
    assert torch.equal(first.variances, second.variances)


def test_bad_shares_are_refused():
    x, ids = pictures(6), torch.arange(6) % 2
    with pytest.raises(ValueError, match=r"must share one shape, got \(2, 3, 4\) and others in other proc"):
        in_processes([(x, ids), (x[..., :2], ids)])
    with pytest.raises(ValueError, match="latents must hold at least one picture, got none"):
        in_processes([([], None), ([], None)])
    with pytest.raises(ValueError, match="latents must be readable in all processes, got errors in 1 others"):
        in_processes([(x, ids), (x / 0, ids)])
    with pytest.raises(ValueError, match="latents must be finite, got nan or inf in picture 0"):
        in_processes([(x / 0, ids), (x, ids)])


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_fit_goes_on_after_the_classes_it_finished(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(fitting, "HELD_BYTES", 1)  # a class at a time
    x, ids = pictures(40, fall=6), torch.arange(40) % 2
    whole = fit_statistics(x, ids, class_names=NAMES, components=3)

    def fit(**options):
        cuts = [x.tensor_split(processes), ids.tensor_split(processes)]
        sources = [BatchesByClass(a, b, 7, **options) for a, b in zip(*cuts, strict=True)]
        if processes == 1:
            return sources, fit_statistics(sources[0], class_names=NAMES, components=3, work=tmp_path)
        return sources, in_processes(sources, components=3, work=tmp_path)[0]

    _, uninterrupted = fit()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["class-0.safetensors", "class-1.safetensors", "moments.safetensors"]
    (tmp_path / "class-1.safetensors").unlink()
    sources, found = fit()
    assert {asked for source in sources for asked in source.asked} == {(1,)}
    check_same(found, whole)
    assert torch.equal(found.axes[0], uninterrupted.axes[0])
    sources, again = fit(fail_at=0)
    assert torch.equal(again.axes, found.axes)
    assert torch.equal(again.variances, found.variances)
    assert sum(source.read for source in sources) == 0


def test_an_error_keeps_what_was_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "HELD_BYTES", 1)
    x, ids = pictures(40), torch.arange(40) % 2
    options = {"class_names": NAMES, "components": 3, "work": tmp_path / "a" / "b"}
    with pytest.raises(OSError, match="the disk is gone"):
        fit_statistics(BatchesByClass(x, ids, 7, fail_at=30), **options)
    assert not (tmp_path / "a").exists()
    with pytest.raises(OSError, match="the disk is gone"):
        fit_statistics(BatchesByClass(x, ids, 7, fail_at=65), **options)
    source = BatchesByClass(x, ids, 7)
    check_same(fit_statistics(source, **options), fit_statistics(x, ids, class_names=NAMES, components=3))
    assert source.read == 20
    assert source.asked == ((1,),)


@pytest.mark.parametrize("damage", ["truncated", "of another rank", "of other tensors"])
def test_what_cannot_be_used_is_computed_again(tmp_path, damage):
    x, ids = pictures(40), torch.arange(40) % 2
    options = {"class_names": NAMES, "components": 3, "work": tmp_path}
    whole = fit_statistics(x, ids, **options)
    if damage == "of another rank":
        fit_statistics(x, ids, **{**options, "components": 2})
    for path in tmp_path.iterdir():
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:-9])
        elif damage == "of other tensors":
            path.write_bytes((tmp_path / "moments.safetensors").read_bytes())
    check_same(fit_statistics(x, ids, **options), whole)


def test_processes_use_only_what_all_of_them_find(tmp_path):
    """As on machines without a common disk, one of which lost its folder."""
    x, ids = pictures(40, fall=6), torch.arange(40) % 2
    whole = fit_statistics(x, ids, class_names=NAMES, components=3)
    fit_statistics(x, ids, class_names=NAMES, components=3, work=tmp_path)
    sources = [BatchesByClass(x[:9], ids[:9], 7), BatchesByClass(x[9:], ids[9:], 7)]
    blind = threading.local()
    read = reading.Work._read

    def lose_for_one(self, part, shapes):
        blind.me = getattr(blind, "me", self._together.index == 0)
        return None if blind.me else read(self, part, shapes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading.Work, "_read", lose_for_one)
        for found in in_processes(sources, components=3, work=tmp_path):
            check_same(found, whole)
    assert [source.read for source in sources] == [18, 62]
