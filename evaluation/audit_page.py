"""An audit as one self-contained page: rules, measured values, pictures worst first, and a row for each."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from ..whole_file import write_whole
from .audit import AuditReport
from .audit_rows import Row, listed_rows, rows_of, shown_rows, worst_of
from .criteria import CRITERIA, TOTAL_LEVEL, Criterion, Range
from .limits import Limits
from .look.foreground import to_rgb
from .rules import describe_limits, digits_to_tell, span
from .start_page import data_uri

TEMPLATE = Path(__file__).with_name("audit_page.html")
FEW, LARGE_SIDE, SIDE = 64, 512, 256  # up to FEW inlined pictures are inlined large
EXAMPLES = 8
REASONS = 3  # beside a picture, before it is opened
BINS, CHART_WIDTH, CHART_HEIGHT = 30, 240, 60
KNOWN = ("pass_rate", "standard_error", "n", "rules", "limits", "pictures")


@dataclass(frozen=True)
class Chart:
    """A histogram of one criterion: bars (x, kept, outside) in SVG units, and where its limits lie."""

    name: str
    rule: str
    allowed: str
    outside: int
    bars: list[tuple[float, float, float]]
    band: tuple[float, float]
    ends: tuple[str, str]


def write_audit_page(
    path: str | os.PathLike[str],
    *,
    report: AuditReport,
    pictures: Sequence[Image.Image],
    title: str,
    reference_pictures: Sequence[Image.Image] = (),
    captions: Sequence[str] | None = None,
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Writes the page, pictures inlined, and returns its path.

    pictures: those that were audited, in the report's order; reference_pictures: examples of the catalogue,
    the first 8 are shown; captions: one a picture, such as prompts; facts: label -> value.
    Up to 200 pictures are inlined, of more the worst 160, the worst of each rule and the first 40 that
    passed: at most 512 pixels a side when they are up to 64, else 256. The table lists the worst 5,000.
    Raises ValueError when there are not as many pictures or captions as the report has.
    """
    for what, given in (("pictures", pictures), ("captions", captions)):
        if given is not None and len(given) != report.n:
            raise ValueError(f"{what} must be one for each of the report's {report.n}, got {len(given)}")
    found = report.to_dict()
    rows = rows_of(found, limits=report.limits, captions=captions)
    shown = shown_rows(rows)
    side = LARGE_SIDE if len(shown) <= FEW else SIDE
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"uri": lambda image: data_uri(_at_most(image, side)), "label": label}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        report=report,
        verdict=verdict(report),
        facts=facts or {},
        rules=rule_table(rows, report=report),
        rule_ids={rule: i for i, rule in enumerate(report.rules)},
        charts=[chart for name in report.limits.pooled if (chart := histogram(name, rows, report.limits))],
        limits=report.limits,
        limit_table=limit_table(report.limits.pooled),
        own_limits={name: own_limits(report.limits, name) for name in report.limits.by_class},
        level=TOTAL_LEVEL,
        more=further({"clusters": found["limits"]["clusters"], **found}),
        rows=rows,
        listed=listed_rows(rows, shown),
        shown=shown,
        reasons_shown=REASONS,
        pictures=pictures,
        columns=[*dict.fromkeys(name for row in rows for name in row.values)],
        other_columns=[*dict.fromkeys(name for row in rows for name in row.others)],
        examples=[_at_most(image, SIDE) for image in reference_pictures[:EXAMPLES]],
        told=lambda name, row: told(name, row, report.limits),
        width=CHART_WIDTH,
        height=CHART_HEIGHT,
        bar=CHART_WIDTH / BINS,
    )
    return write_whole(page, path)


def rule_table(rows: Sequence[Row], *, report: AuditReport) -> list[dict[str, Any]]:
    """Of each rule: the share that keeps it with its standard error, what it allows, its worst picture."""
    table = []
    for rule, rate in report.rules.items():
        broken = [row for row in rows if rule in row.broken]
        table.append(
            {
                "name": rule,
                "rate": rate,
                "error": math.sqrt(rate * (1 - rate) / report.n),
                "allowed": describe_limits(report.limits, rule=rule),
                "failed": len(broken),
                "worst": worst_of(rule, broken) if broken else None,
            }
        )
    return table


def limit_table(ranges: Mapping[str, Range]) -> list[tuple[str, str, str, str, str]]:
    """Name, rule, allowed range, floor and its reason of each criterion."""
    return [
        (label(name), (c := CRITERIA[name]).rule, told_range(allowed, c), number(c.floor, c), c.why)
        for name, allowed in ranges.items()
    ]


def own_limits(limits: Limits, class_name: str) -> dict[str, str]:
    """What one class allows, criterion -> text, of those criteria that it has limits of its own for."""
    return {
        name: told_range(allowed, CRITERIA[name]) for name, allowed in limits.by_class[class_name].items()
    }


def histogram(name: str, rows: Sequence[Row], limits: Limits) -> Chart | None:
    """How the pictures' values of one criterion lie against its limits; None when none was measured.

    The band is what all classes together allow; outside is what lies outside the limits of its own class.
    The scale reaches twice the range beyond the limits at most; what lies further counts at its edge.
    """
    measured = [row for row in rows if row.values.get(name) is not None]
    if not measured:
        return None
    values = np.array([row.values[name] for row in measured], dtype=float)
    ranges = {each: limits.of(each)[name] for each in {row.class_name for row in measured}}
    lows, highs = np.array([ranges[row.class_name] for row in measured]).T
    outside = (values < lows) | (values > highs)
    criterion, limit = CRITERIA[name], limits.pooled[name]
    allowed = _within_sight(limit, criterion, values)
    width = allowed.high - allowed.low or criterion.floor
    low = max(min(values.min(), allowed.low), allowed.low - 2 * width)
    high = min(max(values.max(), allowed.high), allowed.high + 2 * width)
    scale = (high - low) or criterion.floor
    places = np.clip((values - low) / scale * BINS, 0, BINS - 1).astype(int)
    kept, lost = (np.bincount(places[chosen], minlength=BINS) for chosen in (~outside, outside))
    unit = CHART_HEIGHT / (kept + lost).max()
    return Chart(
        name=label(name),
        rule=criterion.rule,
        allowed=told_range(limit, criterion),
        outside=int(outside.sum()),
        bars=[
            (i * CHART_WIDTH / BINS, float(kept[i] * unit), float(lost[i] * unit))
            for i in np.flatnonzero(kept + lost).tolist()
        ],
        band=((allowed.low - low) / scale * CHART_WIDTH, (allowed.high - low) / scale * CHART_WIDTH),
        ends=(
            ("≤ " if values.min() < low else "") + number(low, criterion),
            ("≥ " if values.max() > high else "") + number(high, criterion),
        ),
    )


def verdict(report: AuditReport) -> str:
    """The audit in a sentence or two, with what the number of pictures can tell."""
    n, kept = report.n, sum(report.passed)
    pictures = "picture keeps" if n == 1 else "pictures keep"
    if kept == n:
        least = f"{100 * 0.05 ** (1 / n):.1f} %"
        return (
            f"{'The one' if n == 1 else f'All {n}'} {pictures} the catalogue's look. "
            f"From so many it is 95 % sure that at least {least} of such pictures do."
        )
    broken = {rule: round((1 - rate) * n) for rule, rate in report.rules.items() if rate < 1}
    worst = sorted(broken.items(), key=lambda item: -item[1])[:3]
    most = ", ".join(f"{rule} ({count})" for rule, count in worst)
    return f"{kept or 'None'} of {n} {pictures} the catalogue's look. Most often broken: {most}."


def further(found: Mapping[str, Any]) -> dict[str, Any]:
    """Whatever else an audit found, such as clusters or text agreement."""
    return {
        key: value for key, value in found.items() if key not in KNOWN and value not in (None, {}, [], "")
    }


def label(name: str) -> str:
    """A name of the code as words."""
    return str(name).replace("_", " ")


def told(name: str, row: Row, limits: Limits) -> str:
    """A picture's value as text, finer where it would read like the limit that it breaks."""
    value, criterion = row.values.get(name), CRITERIA.get(name)
    if value is None or criterion is None or name not in row.wrong:
        return number(value, criterion)
    allowed = limits.of(row.class_name)[name]
    more = digits_to_tell(value, allowed, lambda each, more: number(each, criterion, more=more))
    return number(value, criterion, more=more)


def number(value: float | None, criterion: Criterion | None, *, more: int = 0) -> str:
    """A value as text: shares in percent, all else as fine as its just-visible step, and `more` digits."""
    if value is None:
        return ""
    if criterion is None:
        return f"{value:z.1f}"
    if max(abs(criterion.lowest), abs(criterion.highest)) <= 1:
        return f"{100 * value:z.{1 + more}f} %"
    return f"{value:z.{more + (1 if criterion.floor >= 1 else 2 if criterion.floor >= 0.1 else 3)}f}"


def told_range(allowed: Range, criterion: Criterion) -> str:
    """An allowed range as text, its ends as `number` tells them."""
    return span(allowed, criterion, lambda end: number(end, criterion))


def _within_sight(limit: Range, criterion: Criterion, values: np.ndarray) -> Range:
    """The limits, an end that no value can pass moved to where the values end, at least a floor away."""
    low, high = limit
    if low <= criterion.lowest:
        low = max(min(values.min(), high - criterion.floor), criterion.lowest)
    if high >= criterion.highest:
        high = min(max(values.max(), low + criterion.floor), criterion.highest)
    return Range(float(low), float(high))


def _at_most(image: Image.Image, side: int) -> Image.Image:
    """The picture with at most `side` pixels a side, never enlarged, transparent parts on white."""
    small = to_rgb(image).copy()
    small.thumbnail((side, side))
    return small
