"""The diagnosis against closed forms, simulated starts and literal leave-one-out."""

import json
import math
from dataclasses import replace

import pytest
import torch
from onbrand.pca.diagnosis import Diagnosis, PictureNumbers, diagnose, read_pictures, unseen_variances
from onbrand.pca.fit import fit_statistics
from onbrand.pca.linear_test import ClassModel, best_linear_test
from onbrand.pca.outliers import leave_one_out_distances, stand_out
from onbrand.pca.statistics import Statistics
from torch.special import ndtr

SHAPE = (1, 8, 8)
D = 64
FIRST = {"DDIM 20": (951, 0.1)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*size, seed=0):
    return torch.randn(*size, generator=generator(seed), dtype=torch.float64)


def fit(x, *, axes, ids=None, names=("mug",)):
    """Statistics and the numbers of their own pictures; x: (n, D)."""
    x = x.unflatten(1, (1, 8, -1))
    ids = torch.zeros(len(x), dtype=torch.long) if ids is None else ids
    statistics = fit_statistics(x, ids, class_names=list(names), components=0, reserve=axes)
    return statistics, read_pictures(statistics, x, ids)


def nothing(axes):
    zeros = torch.zeros(0, dtype=torch.float64)
    return PictureNumbers(zeros.long(), zeros, zeros, torch.zeros(0, axes, dtype=torch.float64), zeros)


def diagnosis_of(x, *, axes, held_out=None, first=FIRST, alpha_last=0.005, **options) -> Diagnosis:
    statistics, train = fit(x, axes=axes)
    other = nothing(train.scores.shape[1])
    if held_out is not None:
        rows = held_out.unflatten(1, (1, 8, -1))
        other = read_pictures(statistics, [(rows, torch.zeros(len(rows), dtype=torch.long))])
    return diagnose(statistics, train, other, first=first, alpha_last=alpha_last, **options)


def planted(mean, variances, rest, *, count=1000):
    """Statistics of one class that are what they are told to be; along axes of a turned basis."""
    rank = len(variances)
    basis = torch.linalg.qr(normal(D, D, seed=9)).Q.T
    variances = torch.tensor(variances, dtype=torch.float64)
    total = variances.sum() + rest * (D - rank)
    return Statistics(
        class_names=("mug",),
        shape=SHAPE,
        counts=[count],
        means=mean[None],
        squares=torch.full((1, D), float(total) * (count - 1) / D, dtype=torch.float64),
        axes=basis[None, :rank].float(),
        variances=variances[None],
    )


def ratio(w, mean, covariance, a):
    """The quantity that the best test makes largest."""
    start = a * covariance + (1 - a) * torch.eye(D, dtype=torch.float64)
    return float(a**0.5 * w @ mean / ((w @ start @ w).sqrt() + w.norm()))


def whole_direction(test, statistics):
    """A test's direction (D,)."""
    axes, mean = statistics.axes[0].double(), statistics.means[0]
    return test.on_axes @ axes + test.on_rest * (mean - (axes @ mean) @ axes)


MEAN = 1.5 * normal(D, seed=3)
SPREAD = [30.0, 12.0, 5.0]


@pytest.fixture(scope="module")
def spread_class():
    statistics = planted(MEAN, SPREAD, 0.4)
    axes = statistics.axes[0].double()
    covariance = 0.4 * torch.eye(D, dtype=torch.float64)
    covariance += axes.T @ torch.diag(torch.tensor(SPREAD, dtype=torch.float64) - 0.4) @ axes
    return statistics, covariance


@pytest.mark.parametrize("a", [0.004, 0.05, 0.6])
def test_accuracy_of_an_isotropic_class_has_a_closed_form(a):
    rest = 0.7
    model = ClassModel.of(planted(MEAN, [], rest), 0)
    expected = ndtr(a**0.5 * MEAN.norm() / (1 + math.sqrt(a * rest + 1 - a)))
    assert best_linear_test(model, a).accuracy == pytest.approx(float(expected), abs=1e-9)


def test_an_accuracy_is_what_simulated_starts_and_noises_show(spread_class):
    statistics, covariance = spread_class
    a, n = 0.1, 40_000
    test = best_linear_test(ClassModel.of(statistics, 0), a)
    w = whole_direction(test, statistics)
    x_0 = MEAN + normal(n, D, seed=1) @ torch.linalg.cholesky(covariance).T
    starts = a**0.5 * x_0 + (1 - a) ** 0.5 * normal(n, D, seed=2)
    right_starts = (starts @ w > test.threshold).double().mean()
    right_noises = (normal(n, D, seed=4) @ w <= test.threshold).double().mean()
    four_deviations = 4 * (0.25 / n) ** 0.5
    assert 0.8 < test.accuracy < 0.999
    assert float(right_starts) == pytest.approx(test.accuracy, abs=four_deviations)
    assert float(right_noises) == pytest.approx(test.accuracy, abs=four_deviations)


@pytest.mark.parametrize("a", [0.01, 0.1, 0.5])
def test_no_other_direction_tells_better(spread_class, a):
    statistics, covariance = spread_class
    test = best_linear_test(ClassModel.of(statistics, 0), a)
    best = ratio(whole_direction(test, statistics), MEAN, covariance, a)
    assert best == pytest.approx(test.threshold / test.length, rel=1e-6)
    start = a * covariance + (1 - a) * torch.eye(D, dtype=torch.float64)
    w = whole_direction(test, statistics)
    others = {
        "the mean": MEAN,
        "Fisher's": torch.linalg.solve(start + torch.eye(D, dtype=torch.float64), MEAN),
        "whitened": torch.linalg.solve(start, MEAN),
        **{f"nearby {i}": w + 0.05 * w.norm() * normal(D, seed=i) for i in range(50)},
        **{f"random {i}": normal(D, seed=i) for i in range(50)},
    }
    for name, other in others.items():
        assert ratio(other, MEAN, covariance, a) <= best * (1 + 1e-9), name


def test_accuracy_goes_by_held_out_pictures_with_their_noise_integrated_out(spread_class):
    statistics, covariance = spread_class
    a, n, each = 0.1, 5, 20_000
    shift = -0.6 * MEAN  # held-out pictures that the test does worse on
    x_0 = (MEAN + shift + normal(n, D, seed=1) @ torch.linalg.cholesky(covariance).T).float()
    held_out = read_pictures(statistics, x_0.unflatten(1, SHAPE), torch.zeros(n, dtype=torch.long))
    found = (
        diagnose(statistics, held_out, held_out, first={"DDIM": (950, a)}, alpha_last=a)
        .classes[0]
        .accuracy["DDIM"]
    )
    test = best_linear_test(ClassModel.of(statistics, 0), a)
    w = whole_direction(test, statistics)
    starts = (a**0.5 * x_0.double() @ w)[:, None] + (1 - a) ** 0.5 * w.norm() * normal(n, each, seed=7)
    simulated = ((starts > test.threshold).double().mean() + test.accuracy) / 2
    assert found == pytest.approx(float(simulated), abs=4 * 0.5 * (0.25 / (n * each)) ** 0.5)
    assert found < test.accuracy - 0.05


def test_few_pictures_tell_nothing_of_others_where_there_is_nothing_to_tell():
    found = diagnosis_of(normal(3, D), axes=0, held_out=normal(200, D, seed=1), first={"DDIM": (950, 0.3)})
    unjudged = diagnosis_of(normal(3, D), axes=0, first={"DDIM": (950, 0.3)})
    assert unjudged.accuracy > 0.85
    assert 0.5 <= found.accuracy < 0.7


def test_accuracy_is_never_below_guessing():
    x = 1 + 0.1 * normal(10, D)
    assert diagnosis_of(x, axes=2, held_out=-x).accuracy == 0.5


@pytest.mark.parametrize("held_out", [None, 4 + 0.1 * normal(5, D, seed=1)])
def test_nothing_is_told_at_a_of_0_or_from_a_mean_of_0(held_out):
    x = 4 + 0.1 * normal(10, D)
    found = diagnosis_of(x, axes=2, held_out=held_out, first={"Euler": (999, 0.0)}, alpha_last=0.0)
    assert found.accuracy == 0.5
    assert (found.classes[0].signal, found.classes[0].signal_trained, found.visible) == (0.0, 0.0, 0)
    assert found.noise_floor == math.inf
    centred = torch.cat([x - 4, 4 - x])
    assert diagnosis_of(centred - centred.mean(dim=0), axes=0).accuracy == pytest.approx(0.5, abs=1e-6)
    assert diagnosis_of(torch.zeros(5, D), axes=2).accuracy == 0.5


def test_signals_are_equations_6_and_7_by_hand():
    x = torch.zeros(3, D, dtype=torch.float64)
    x[0], x[1], x[2] = 1.0, 2.0, 6.0  # averages 1, 2, 6: mean 3, variance 7
    found = diagnosis_of(x, axes=1, alpha_last=0.01).classes[0]
    assert found.signal == pytest.approx(64 * 0.01 * 9)
    assert found.signal_trained == pytest.approx(5.76 / (0.01 * (7 * 64 - 1) + 1))


def test_explained_and_variances():
    x = torch.zeros(4, D, dtype=torch.float64)
    x[0, 0], x[1, 0], x[2, 1], x[3, 1] = 3.0, -3.0, 1.0, -1.0
    held_out = torch.zeros(2, D, dtype=torch.float64)
    held_out[0, 0], held_out[1, 1] = 4.0, 2.0
    found = diagnosis_of(x, axes=3, held_out=held_out).classes[0]
    assert found.variances == pytest.approx([6.0, 2 / 3, 0.0], abs=1e-9)
    assert found.explained == pytest.approx([0.0, 0.9, 1.0, 1.0])
    assert found.held_out_variances[:2] == pytest.approx([8.0, 2.0])
    assert (found.pictures, found.held_out) == (4, 2)
    assert diagnosis_of(x, axes=3).classes[0].held_out_variances == []
    assert diagnosis_of(torch.ones(4, D), axes=2).classes[0].explained == [0.0, 0.0, 0.0]


def planted_pictures(n, *, seed, variances=(400.0, 100.0, 30.0), rest=1.0, width=D):
    """Pictures with these variances along fixed directions and rest in all others; floor 9 at a = 0.1."""
    directions = torch.linalg.qr(normal(width, len(variances), seed=5)).Q
    scale = (torch.tensor(variances, dtype=torch.float64) - rest).sqrt()
    noise = rest**0.5 * normal(n, width, seed=seed)
    return noise + (scale * normal(n, len(variances), seed=seed + 1)) @ directions.T


def test_visible_components_are_those_above_the_floor_on_held_out_pictures():
    x, held_out = planted_pictures(200, seed=10), planted_pictures(200, seed=20)
    found = diagnosis_of(x, axes=8, held_out=held_out)
    assert found.noise_floor == pytest.approx(9.0)
    assert found.visible == found.classes[0].visible == 3
    louder = {"DDIM": (900, 0.1), "Euler": (999, 0.01)}
    assert diagnosis_of(x, axes=8, held_out=held_out, first=louder).noise_floor == pytest.approx(9.0)
    assert diagnosis_of(x, axes=8, held_out=held_out, first={"DDIM": (999, 0.005)}).visible == 1


def test_an_axis_that_training_pictures_alone_have_is_not_visible():
    x = planted_pictures(12, seed=10, rest=4.0, width=256)
    for held_out in (planted_pictures(40, seed=20, rest=4.0, width=256), None):
        found = diagnosis_of(x, axes=8, held_out=held_out)
        assert found.classes[0].variances[5] > 5 * found.noise_floor
        assert 1 <= found.visible <= 2


def test_one_held_out_picture_is_too_few_to_judge_axes_by():
    x = planted_pictures(100, seed=10)
    assert diagnosis_of(x, axes=4, held_out=x.mean(dim=0).expand(1, D)).visible == 3
    assert diagnosis_of(x, axes=4, held_out=x.mean(dim=0).expand(2, D)).visible == 0


@pytest.mark.parametrize("width", [64, 2048])
def test_unseen_variances_are_near_literal_leave_one_out(width):
    x = planted_pictures(60, seed=10, width=width)
    scores = []
    for i in range(len(x)):
        others = torch.cat([x[:i], x[i + 1 :]])
        mean = others.mean(dim=0)
        axes = torch.linalg.svd(others - mean, full_matrices=False).Vh[:3]
        scores.append(axes @ (x[i] - mean))
    literal = torch.stack(scores).square().mean(dim=0)
    statistics, _ = fit(x, axes=3)
    found = unseen_variances(statistics.variances[0], float(statistics.total_variances[0]), len(x))
    training = statistics.variances[0]
    assert (found[:2] / literal[:2] - 1).abs().max() < 0.25
    assert ((found - literal).abs() < 0.5 * (training - literal).abs() + 0.1 * literal).all()


def test_two_pictures_show_no_component():
    assert unseen_variances(torch.tensor([50.0]).double(), 50.0, 2).tolist() == [0.0]
    assert diagnosis_of(10 * normal(2, D), axes=1).visible == 0


@pytest.mark.parametrize(("n", "width", "axes"), [(12, 64, 0), (12, 64, 5), (12, 64, 12), (90, 64, 64)])
def test_distances_are_literal_leave_one_out(n, width, axes):
    x = planted_pictures(n, seed=30, width=width)
    statistics, numbers = fit(x, axes=axes)
    found = leave_one_out_distances(
        numbers.scores, numbers.energy, statistics.variances[0], count=n, dimension=width
    )
    p = statistics.axes[0].double()
    beside = (x - x.mean(dim=0)) - (x - x.mean(dim=0)) @ p.T @ p
    least = 1e-3 * numbers.energy.mean() / width
    middle = torch.quantile(beside.square().sum(dim=1), 0.5) * n / (n - 1) / max(width - axes, 1)
    residual = max(float(middle) if width > axes else 0.0, float(least))
    for i in range(n):
        others = torch.cat([x[:i], x[i + 1 :]])
        z = x[i] - others.mean(dim=0)
        inside = torch.cov((others @ p.T).T, correction=1).reshape(len(p), len(p))
        inside = inside + residual * torch.eye(len(p), dtype=torch.float64)
        rest = z - (p @ z) @ p
        squared = (p @ z) @ torch.linalg.solve(inside, p @ z) + rest @ rest / residual
        assert float(found[i]) == pytest.approx(float(squared.sqrt()), rel=1e-3)


def smooth_family(n, *, seed=0):
    """Pictures that differ in four smooth ways and a little noise."""
    u = torch.linspace(0, math.pi, D, dtype=torch.float64)
    waves = torch.stack([torch.cos(k * u) for k in range(1, 5)])
    strengths = torch.tensor([0.8, 0.5, 0.3, 0.2], dtype=torch.float64)
    return 1 + (strengths * normal(n, 4, seed=seed)) @ waves + 0.2 * normal(n, D, seed=seed + 1)


@pytest.mark.parametrize("axes", [0, 3, 8, 39], ids=lambda axes: f"{axes} axes")
@pytest.mark.parametrize("alike", [False, True], ids=["different", "alike"])
def test_odd_pictures_come_first_and_flagged(axes, alike):
    x, odd = smooth_family(40), [5, 17, 30]
    pattern = 2.5 * normal(3, D, seed=50)
    x[odd] = smooth_family(3, seed=60) + (pattern[:1] if alike else pattern)
    found = diagnosis_of(x, axes=axes)
    assert {outlier.row for outlier in found.outliers[:3]} == set(odd)
    assert found.flagged == 3
    assert [outlier.flagged for outlier in found.outliers] == [True] * 3 + [False] * 21
    assert min(outlier.ratio for outlier in found.outliers[:3]) > 1.5
    assert "3 of 40 pictures look unlike their class." in found.verdict


@pytest.mark.parametrize("axes", [0, 8, 39])
def test_a_clean_family_has_no_outliers(axes):
    scale = torch.logspace(0.5, -0.5, D, dtype=torch.float64)
    for seed in range(10):
        found = diagnosis_of(3 + scale * normal(40, D, seed=seed), axes=axes)
        assert found.flagged == 0, seed
    assert "unlike" not in found.verdict


def test_an_extreme_picture_among_six():
    x = smooth_family(6)
    x[2] += 20 * normal(D, seed=8)
    found = diagnosis_of(x, axes=5)
    assert (found.outliers[0].row, found.flagged) == (2, 1)
    assert "1 of 6 pictures looks unlike its class." in found.verdict


def test_outliers_are_listed_over_all_classes_with_their_rows():
    x, ids = smooth_family(63), torch.arange(63) % 2
    x[60:], ids[60:] = normal(3, D, seed=1), 2  # a class of three
    x[41] += 3 * normal(D, seed=8)
    x[8] += 6 * normal(D, seed=9)
    statistics = fit_statistics(
        x.unflatten(1, SHAPE), ids, class_names=["mug", "shoe", "hat", "none"], reserve=4, allow_empty=True
    )
    train = read_pictures(statistics, x.unflatten(1, SHAPE), ids)
    found = diagnose(statistics, train, nothing(4), first=FIRST, alpha_last=0.005, limit=5)
    assert [(o.row, o.class_name) for o in found.outliers[:2]] == [(8, "mug"), (41, "shoe")]
    assert found.flagged == 2
    assert len(found.outliers) == 5
    assert not {outlier.class_name for outlier in found.outliers} & {"hat", "none"}
    assert [one.class_name for one in found.classes] == ["mug", "shoe", "hat"]
    assert [one.pictures for one in found.classes] == [30, 30, 3]
    none = diagnose(statistics, train, nothing(4), first=FIRST, alpha_last=0.005, limit=0)
    assert (none.outliers, none.flagged) == ([], 2)


@pytest.mark.parametrize("axes", [0, 4])
def test_equal_pictures_flag_no_rounding(axes):
    third = torch.full((30, D), 1 / 3, dtype=torch.float64)
    assert diagnosis_of(third, axes=axes).flagged == 0
    assert diagnosis_of(torch.zeros(30, D), axes=axes).flagged == 0
    nearly = third.clone()
    nearly[3, 7] += 1
    found = diagnosis_of(nearly, axes=axes)
    assert (found.flagged, found.outliers[0].row) == (1, 3)
    assert math.isfinite(found.outliers[0].ratio)


def test_distances_where_most_pictures_are_the_mean_are_finite():
    energy = torch.tensor([0.0] * 8 + [4.0, 4.0]).double()
    standing = stand_out(torch.zeros(10, 0).double(), energy, torch.zeros(0).double(), count=10, dimension=D)
    assert (standing.beyond > 1).tolist() == [False] * 8 + [True] * 2
    assert torch.isfinite(standing.ratio).all()


def test_pictures_are_read_alike_in_batches_and_at_once():
    x, ids = smooth_family(20), torch.arange(20) % 2
    rows = x.unflatten(1, SHAPE)
    statistics = fit_statistics(rows, ids, class_names=["mug", "shoe"], reserve=3)
    at_once = read_pictures(statistics, rows, ids)
    batches = read_pictures(statistics, zip(rows.split(3), ids.split(3), strict=True))
    for a, b in zip(at_once, batches, strict=True):
        torch.testing.assert_close(a, b)
    mean = torch.stack([x[ids == c].mean(dim=0) for c in (0, 1)])[ids]
    torch.testing.assert_close(at_once.average, x.mean(dim=1))
    torch.testing.assert_close(at_once.on_mean, (x * mean).sum(dim=1))
    torch.testing.assert_close(at_once.energy, (x - mean).square().sum(dim=1))
    axes = statistics.axes.double()[ids]
    torch.testing.assert_close(at_once.scores, torch.einsum("nkd,nd->nk", axes, x - mean))
    assert [len(column) for column in read_pictures(statistics, [])] == [0] * 5


def test_over_classes_accuracy_and_k_go_by_pictures():
    few, many = planted_pictures(10, seed=1, variances=(1.0,)), planted_pictures(90, seed=2)
    x, ids = torch.cat([few, 5 + many]), torch.tensor([0] * 10 + [1] * 90)
    statistics, train = fit(x, axes=5, ids=ids, names=("mug", "shoe"))
    held_out = read_pictures(
        statistics,
        torch.cat(
            [planted_pictures(9, seed=3, variances=(1.0,)), 5 + planted_pictures(50, seed=4)]
        ).unflatten(1, SHAPE),
        torch.tensor([0] * 9 + [1] * 50),
    )
    first = {"DDIM": (950, 0.1), "Euler": (990, 0.01)}
    found = diagnose(statistics, train, held_out, first=first, alpha_last=0.005)
    mug, shoe = found.classes
    assert (mug.visible, shoe.visible, found.visible) == (0, 3, 3)
    expected = 0.1 * max(mug.accuracy.values()) + 0.9 * max(shoe.accuracy.values())
    assert found.accuracy == pytest.approx(expected)
    assert set(shoe.accuracy) == {"DDIM", "Euler"}


def test_the_median_of_k_is_rounded_down():
    x = torch.cat([planted_pictures(40, seed=1), planted_pictures(40, seed=2, variances=(1.0,))])
    statistics, train = fit(x, axes=4, ids=torch.arange(80) // 40, names=("mug", "shoe"))
    found = diagnose(statistics, train, nothing(4), first=FIRST, alpha_last=0.005)
    assert [one.visible for one in found.classes] == [3, 0]
    assert found.visible == 1


# a pattern that all share, and a brightness of its own in each
MOTLEY = 4 * torch.ones(D).cumsum(0).remainder(2).sub(0.5) + 3 * normal(60, 1, seed=5) + normal(60, D)
LOUD, FAINT = 5 + normal(40, D), 1.5 * normal(1, D, seed=1) + normal(400, D, seed=2)


@pytest.mark.parametrize(
    ("options", "sentences"),
    [
        (
            {"x": LOUD, "axes": 2},
            [
                "A linear test tells training starts from pure noise in more than 99 % of cases at t = 951: "
                "the base reads off its noise what a picture is like. The pictures share a look, for pure "
                "noise lies",
                "No component rises above the noise floor 9 by an estimate from the training pictures, as "
                "too few are held out: the network cannot read any, so K = 0, the class mean.",
            ],
        ),
        (
            {"x": MOTLEY, "axes": 2},
            ["is like. But they share little of it, for pure noise lies 0."],
        ),
        (
            {"x": FAINT, "axes": 0, "first": {"DDIM 20": (951, 0.005), "Euler 30": (999, 0.001)}},
            [
                "in 68 % of cases at t = 951: guessing makes it 50 %, so the leak is weak, and offset "
                "fine-tuning may gain some.",
                "No components were looked at: K = 0, the class mean, is the safe choice.",
            ],
        ),
        (
            {"x": normal(4000, D), "axes": 1, "first": {"DDIM 20": (951, 0.005)}},
            ["in 50 % of cases at t = 951: that is hardly more than guessing, so there is nothing to fix."],
        ),
        (
            {"x": LOUD, "axes": 2, "first": {"DDIM 20": (999, 0.0)}},
            [
                "At the first timestep, t = 999, nothing is left of the picture (a = 0): training starts are "
                "pure noise already, there is no leak, and offset fine-tuning changes nothing."
            ],
        ),
        (
            {"x": planted_pictures(100, seed=1), "axes": 5, "held_out": planted_pictures(50, seed=3)},
            [
                "3 components rise above the noise floor 9 on held-out pictures (K = 3): start.family=text "
                "uses them where captions tell; else K = 0, the class mean."
            ],
        ),
        (
            {"x": planted_pictures(100, seed=1), "axes": 1},
            ["The one component known rises above the noise floor 9 by an estimate"],
        ),
        (
            {"x": planted_pictures(100, seed=1), "axes": 3},
            ["All 3 components known rise above the noise floor 9 by an estimate"],
        ),
        (
            {"x": planted_pictures(100, seed=1), "axes": 5, "first": {"DDIM 20": (951, 0.005)}},
            ["1 component rises above the noise floor 199 by"],
        ),
    ],
    ids=["strong", "motley", "weak", "none", "zero terminal SNR", "three", "the one", "all", "one"],
)
def test_the_verdict_in_words(options, sentences):
    verdict = diagnosis_of(**options).verdict
    for sentence in sentences:
        assert sentence in verdict


@pytest.mark.parametrize("a", [0.1, 0.0])
def test_a_diagnosis_is_json(a):
    x = smooth_family(40)
    found = diagnosis_of(x, axes=3, held_out=smooth_family(5, seed=9), first={"DDIM": (951, a)}, limit=2)
    content = found.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["noise_floor"] == (pytest.approx(9.0) if a else None)
    assert content["first"] == {"DDIM": [951, a]}
    assert content["accuracy"] == found.accuracy
    assert content["visible"] == found.visible
    assert content["verdict"] == found.verdict
    assert content["classes"][0]["explained"] == found.classes[0].explained
    assert content["outliers"][1]["row"] == found.outliers[1].row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": {}}, "first must name at least one sampler, got none"),
        ({"first": {"DDIM 20": (951, 1.0)}}, r"a of 'DDIM 20' must be in \[0, 1\), got 1.0"),
        ({"first": {"DDIM 20": (951, math.nan)}}, r"a of 'DDIM 20' must be in \[0, 1\), got nan"),
        ({"alpha_last": -0.1}, r"alpha_last must be in \[0, 1\), got -0.1"),
        ({"limit": -1}, "limit must be 0 or more, got -1"),
        ({"train": nothing(3)}, "train must have scores along the statistics' 2 axes, got 3"),
        ({"held_out": nothing(1)}, "held_out must have scores along the statistics' 2 axes, got 1"),
        ({"counts": [0]}, "statistics must be of at least one picture, got none"),
    ],
)
def test_what_diagnose_refuses(change, message):
    statistics, train = fit(smooth_family(5), axes=2)
    known = {"train": train, "held_out": nothing(2), "first": FIRST, "alpha_last": 0.005} | change
    statistics = replace(statistics, counts=known.pop("counts", statistics.counts))
    with pytest.raises(ValueError, match=message):
        diagnose(statistics, known.pop("train"), known.pop("held_out"), **known)


@pytest.mark.parametrize(
    ("latents", "ids", "message"),
    [
        (torch.zeros(2, *SHAPE), None, "class_ids must be one id for each of 2 latents, got None"),
        (torch.zeros(2, *SHAPE), torch.zeros(3).long(), "one id for each of 2 latents, got 3"),
        ([(torch.zeros(2, *SHAPE), torch.zeros(1).long())], None, "one id for each of 2 latents, got 1"),
        (torch.zeros(2, *SHAPE), torch.tensor([0, 1]), r"class_ids must be in \[0, 1\), got \[0, 1\]"),
        (
            torch.zeros(2, 1, 4, 16),
            torch.zeros(2).long(),
            r"latents must be shaped \(B, 1, 8, 8\) as in the statistics, got \(2, 1, 4, 16\)",
        ),
        (torch.full((1, *SHAPE), math.nan), torch.zeros(1).long(), "latents must be finite, got nan or inf"),
    ],
)
def test_what_read_pictures_refuses(latents, ids, message):
    statistics, _ = fit(smooth_family(5), axes=2)
    with pytest.raises(ValueError, match=message):
        read_pictures(statistics, latents, ids)


def test_added_pictures_are_judged_by_the_spread_of_all():
    """Read alone, a few pictures would make eq. 7 of the whole class larger than it is."""
    x = normal(300, D) + 3 * normal(300, 1, seed=1) + 1
    statistics = fit_statistics(x.view(-1, D, 1, 1), torch.zeros(300).long(), class_names=["mug"], reserve=3)

    def seventh(rows):
        numbers = read_pictures(statistics, rows.view(-1, D, 1, 1), torch.zeros(len(rows)).long())
        none = read_pictures(statistics, [])
        found = diagnose(statistics, numbers, none, first={"DDIM 20": (951, 0.1)}, alpha_last=0.005)
        return found.classes[0].signal_trained, found.read

    (whole, read), (few, read_few) = seventh(x), seventh(x[:3])
    assert (read, read_few) == (300, 3)
    assert few == pytest.approx(whole, rel=0.02)


def test_the_suggested_components_fit_the_smallest_class():
    found = diagnosis_of(planted_pictures(100, seed=1), axes=5)
    [one] = found.classes
    classes = [replace(one, visible=5, pictures=100), replace(one, visible=5, pictures=4)]
    assert replace(found, classes=classes).visible == 3
