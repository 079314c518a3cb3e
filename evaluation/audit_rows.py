"""The pictures of an audit as rows: what was measured and broken, worst first, and which are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .criteria import CRITERIA, Range
from .limits import Limits

MOST_FAILED, MOST_PASSED = 160, 40  # shown with their pictures
MOST_LISTED = 5000  # of more a browser's table grows slow
TELLS = ("name", "passed", "failures", "measures")  # of a picture, in AuditReport.to_dict


@dataclass(frozen=True)
class Row:
    """One picture: what was measured and judged, and how many just-visible steps beyond each rule's limits.

    index: its place in the report; class_name: the one whose limits it was judged by, None without; wrong:
    the values that broke a rule; others: whatever else was found.
    """

    index: int
    name: str
    class_name: str | None
    caption: str
    failures: list[dict[str, str]]
    values: dict[str, float | None]
    wrong: frozenset[str]
    excess: dict[str, float]
    others: dict[str, Any]

    @property
    def broken(self) -> list[str]:
        """The rules that it breaks, each once."""
        return list(dict.fromkeys(failure["rule"] for failure in self.failures))

    def worst(self, most: int) -> list[dict[str, str]]:
        """At most so many of its failures, those of the rules that it breaks furthest first."""
        return sorted(self.failures, key=lambda failure: -self.excess[failure["rule"]])[:most]


def rows_of(found: Mapping[str, Any], *, limits: Limits, captions: Sequence[str] | None = None) -> list[Row]:
    """The pictures of an audit's dict: most rules broken first, then furthest beyond the limits."""
    rows = []
    for i, picture in enumerate(found["pictures"]):
        values = judged_values(picture["measures"], limits=limits)
        rules = {failure["rule"] for failure in picture["failures"]}
        steps = {
            name: beyond(values[name], allowed, floor=CRITERIA[name].floor)
            for name, allowed in limits.of(picture.get("class")).items()
            if name in values and CRITERIA[name].rule in rules
        }
        excess = dict.fromkeys(rules, 0.0)
        for name, step in steps.items():
            excess[CRITERIA[name].rule] = max(excess[CRITERIA[name].rule], step)
        others = {
            key: value
            for key, value in picture.items()
            if key not in TELLS and (value is None or isinstance(value, str | int | float))
        }
        rows.append(
            Row(
                index=i,
                name=picture["name"],
                class_name=picture.get("class"),
                caption=captions[i] if captions else "",
                failures=picture["failures"],
                values=values,
                wrong=frozenset(name for name, step in steps.items() if step > 0),
                excess=excess,
                others=others,
            )
        )
    return sorted(rows, key=lambda row: (-len(row.broken), -sum(row.excess.values()), row.index))


def judged_values(measures: Mapping[str, float | None], *, limits: Limits) -> dict[str, float | None]:
    """The judged numbers of a picture, in the limits' order, then what else was measured."""
    rest = {name: value for name, value in measures.items() if name not in limits.pooled}
    return {name: measures[name] for name in limits.pooled if name in measures} | rest


def beyond(value: float | None, allowed: Range, *, floor: float) -> float:
    """How far a value lies outside its range, in steps of the just-visible `floor`; 0 inside."""
    if value is None:
        return 0.0
    return max(allowed.low - value, value - allowed.high, 0.0) / floor


def shown_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows whose pictures are inlined: all, or the worst, each rule's worst and the first to pass."""
    if len(rows) <= MOST_FAILED + MOST_PASSED:
        return list(rows)
    failed, passed = [row for row in rows if row.failures], [row for row in rows if not row.failures]
    kept = {row.index for row in failed[:MOST_FAILED]}
    kept |= {worst_of(rule, failed).index for rule in {rule for row in failed for rule in row.broken}}
    return [row for row in failed if row.index in kept] + passed[:MOST_PASSED]


def listed_rows(rows: Sequence[Row], shown: Sequence[Row]) -> list[Row]:
    """The rows of the table: all, or the worst 5,000 and those whose pictures are shown."""
    kept = {row.index for row in shown}
    return [row for i, row in enumerate(rows) if i < MOST_LISTED or row.index in kept]


def worst_of(rule: str, rows: Sequence[Row]) -> Row:
    """The row that lies furthest beyond a rule's limits, of those that break it."""
    return max((row for row in rows if rule in row.broken), key=lambda row: row.excess[rule])
