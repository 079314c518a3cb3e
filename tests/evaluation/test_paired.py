import io

import numpy as np
import pytest
from onbrand.evaluation import compare, comparison_table, standard_error
from rich.console import Console
from rich.table import Table
from scipy import stats


def scores(*, gain: float = 0.3, n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    baseline = rng.normal(2, 1, n)
    return baseline + rng.normal(gain, 0.5, n), baseline


def test_the_standard_error_is_scipys():
    values, _ = scores()
    assert standard_error(values) == pytest.approx(stats.sem(values))
    assert standard_error([1, 3]) == 1


def test_a_comparison_is_the_paired_tests_of_scipy():
    ours, theirs = scores()
    found = compare(ours, list(theirs))
    oracle = stats.ttest_rel(ours, theirs)
    assert found.n == 40
    assert found.difference == pytest.approx(ours.mean() - theirs.mean())
    assert found.p_value == pytest.approx(oracle.pvalue)
    assert found.difference / found.standard_error == pytest.approx(oracle.statistic)
    assert found.p_value_rank == pytest.approx(stats.wilcoxon(ours, theirs).pvalue)


def test_pairing_sees_what_prompts_hide():
    ours, theirs = scores()
    assert compare(ours, theirs).p_value < 0.01 < stats.ttest_ind(ours, theirs).pvalue


def test_a_comparison_mirrors_when_sides_change_and_ignores_the_order():
    ours, theirs = scores()
    there, back = compare(ours, theirs), compare(theirs, ours)
    assert back.difference == pytest.approx(-there.difference)
    assert back.p_value == pytest.approx(there.p_value)
    order = np.random.default_rng(1).permutation(len(ours))
    assert compare(ours[order], theirs[order]).p_value == pytest.approx(there.p_value)


def test_one_prompt_gone_wrong_moves_the_ranks_little():
    ours, theirs = scores(gain=0.5)
    ours[0] = theirs[0] - 100
    found = compare(ours, theirs)
    assert found.p_value > 0.1
    assert found.p_value_rank < 0.01


def test_without_a_difference_small_p_values_are_as_rare_as_they_say():
    found = [compare(*scores(gain=0, n=12, seed=seed)) for seed in range(400)]
    assert stats.kstest([one.p_value for one in found], "uniform").pvalue > 0.01
    assert np.mean([one.p_value_rank < 0.05 for one in found]) < 0.08


@pytest.mark.filterwarnings("error")
def test_equal_scores_and_equal_differences_are_told_apart():
    same = compare([0.1, 0.2, 0.4], [0.1, 0.2, 0.4])
    assert (same.difference, same.standard_error, same.p_value, same.p_value_rank) == (0, 0, 1, 1)
    shifted = compare([2, 3, 4], [1, 2, 3])
    assert (shifted.difference, shifted.standard_error, shifted.p_value) == (1, 0, 0)
    assert shifted.p_value_rank == 2 / 2**3


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([1, 2, 3], [1, 2], "scores must be one a prompt of the baseline's, got 3 scores and 2 prompts"),
        ([1], [1], r"scores must be at least two numbers, one a prompt, got shape \(1,\)"),
        ([1, 2], [[1, 2]], r"baseline must be at least two numbers, one a prompt, got shape \(1, 2\)"),
        ([1, np.nan], [1, 2], "scores must be finite, got nan at position 1"),
        ([1, 2], [np.inf, 2], "baseline must be finite, got inf at position 0"),
    ],
)
def test_what_cannot_be_paired_is_refused(ours, theirs, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        compare(ours, theirs)


def test_one_value_has_no_standard_error():
    with pytest.raises(
        ValueError, match=r"^values must be at least two numbers, one a prompt, got shape \(1,\)$"
    ):
        standard_error([1.0])


def printed(table: Table) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_the_table_shows_means_errors_and_differences():
    galleries = {
        "independent": {"L2": [0.1, 0.2, 0.3], "Vendi": [2.0, 2.5, 3.0]},
        "[coupled]": {"L2": [0.2, 0.3, 0.4], "Vendi": [2.1, 2.4, 3.0]},
    }
    text = printed(comparison_table(galleries, baseline="independent", title="SD1.5"))
    rows = [" ".join(line.replace("│", "|").split()) for line in text.splitlines()]
    assert rows[0] == "SD1.5"
    found = compare(galleries["[coupled]"]["Vendi"], galleries["independent"]["Vendi"])
    assert any("[coupled]" in row for row in rows)
    assert "| L2 | 0.2 ± 0.058 | 0.3 ± 0.058 |" in rows
    assert "| Vendi | 2.5 ± 0.29 | 2.5 ± 0.26 |" in rows
    assert f"| | | {found.difference:+.2g} ± 0.058, p = 1 |" in rows
    assert any("difference from independent, p of a paired t-test" in row for row in rows)


def test_a_table_of_what_cannot_be_compared_is_refused():
    galleries = {"a": {"L2": [1, 2]}, "b": {"MSS": [1, 2]}}
    with pytest.raises(ValueError, match=r"^baseline must be one of a, b, got 'c'$"):
        comparison_table(galleries, baseline="c")
    with pytest.raises(ValueError, match=r"^metrics of 'b' must be L2, got MSS$"):
        comparison_table(galleries, baseline="a")
