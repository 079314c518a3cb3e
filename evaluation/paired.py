"""Is one method better than another on the same prompts? Differences with their errors, and a table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from rich.text import Text
from scipy import stats

Scores = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Scores against a baseline's on the same prompts.

    difference: mean of scores minus baseline; standard_error: of that mean; p_value: paired t-test;
    p_value_rank: Wilcoxon's signed ranks, which no single prompt can sway; both two-sided; n: prompts.
    """

    difference: float
    standard_error: float
    p_value: float
    p_value_rank: float
    n: int


def standard_error(values: Scores) -> float:
    """Standard error of the mean over prompts: the deviation with n - 1 over sqrt(n).

    Raises ValueError on fewer than two values, or one that is no number.
    """
    checked = _checked(values, what="values")
    return float(checked.std(ddof=1) / math.sqrt(len(checked)))


def compare(scores: Scores, baseline: Scores) -> Comparison:
    """Whether scores differ from a baseline's, one of each a prompt, in the same order.

    Where every prompt differs by the same amount the t-test's p-value is 0, where none differs both are 1.
    Raises ValueError on different lengths, fewer than two prompts, or a score that is no number.
    """
    ours, theirs = _checked(scores, what="scores"), _checked(baseline, what="baseline")
    if len(ours) != len(theirs):
        raise ValueError(
            f"scores must be one a prompt of the baseline's, got {len(ours)} scores and {len(theirs)} prompts"
        )
    gaps = ours - theirs
    if not gaps.any():
        return Comparison(0.0, 0.0, 1.0, 1.0, len(gaps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal differences: the p-value of 0 is meant
        p_value = stats.ttest_1samp(gaps, 0.0).pvalue
    return Comparison(
        difference=float(gaps.mean()),
        standard_error=standard_error(gaps),
        p_value=float(p_value),
        p_value_rank=float(stats.wilcoxon(gaps).pvalue),
        n=len(gaps),
    )


def comparison_table(
    scores: Mapping[str, Mapping[str, Scores]], *, baseline: str, title: str = "Galleries"
) -> Table:
    """Mean and standard error of every metric, a column a method, with its difference from a baseline.

    scores: method -> metric -> one score a prompt, prompts in the same order everywhere.
    Raises ValueError on a baseline that is none of the methods, methods of different metrics, and as
    `compare`.
    """
    if baseline not in scores:
        raise ValueError(f"baseline must be one of {', '.join(scores)}, got {baseline!r}")
    metrics = list(scores[baseline])
    for method, values in scores.items():
        if set(values) != set(metrics):
            raise ValueError(f"metrics of {method!r} must be {', '.join(metrics)}, got {', '.join(values)}")
    table = Table(title=Text(title), caption=Text(f"difference from {baseline}, p of a paired t-test"))
    table.add_column("metric")
    for method in scores:
        table.add_column(Text(method), justify="right")
    for metric in metrics:
        reference = scores[baseline][metric]
        cells = [
            _mean(values[metric]) + ("" if method == baseline else _gap(compare(values[metric], reference)))
            for method, values in scores.items()
        ]
        table.add_row(Text(metric), *cells)
    return table


def _mean(values: Scores) -> str:
    return f"{np.mean(values):.4g} ± {standard_error(values):.2g}"


def _gap(found: Comparison) -> str:
    return f"\n{found.difference:+.2g} ± {found.standard_error:.2g}, p = {found.p_value:.2g}"


def _checked(values: Scores, *, what: str) -> np.ndarray:
    checked = np.asarray(values, dtype=np.float64)
    if checked.ndim != 1 or len(checked) < 2:
        raise ValueError(f"{what} must be at least two numbers, one a prompt, got shape {checked.shape}")
    bad = np.flatnonzero(~np.isfinite(checked))
    if bad.size:
        raise ValueError(f"{what} must be finite, got {checked[bad[0]]} at position {bad[0]}")
    return checked
