"""report.html: one self-contained page about a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from PIL import Image

from ..configs.schema import Config
from ..evaluation import RULES
from ..evaluation.audit import describe_limits
from ..evaluation.start_page import data_uri
from ..whole_file import write_whole
from .judge import Audited, sheet
from .prepare import Prepared
from .preview import GROWTH

TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    config: Config,
    audits: Mapping[str, Audited],
    prepared: Prepared,
    *,
    metrics: Sequence[Mapping[str, Any]],
    run: Path,
    audit_page: Path,
) -> Path:
    """Writes the run's report.html, pictures inlined; it links to the page of the last audit, in the run."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    growth = run / "samples" / GROWTH
    limits = next(iter(audits.values())).report.limits
    page = environment.from_string(TEMPLATE.read_text()).render(
        name=run.name,
        config=yaml.safe_dump(config.to_dict(), sort_keys=False),
        rules=[(rule, describe_limits(limits, rule=rule)) for rule in RULES],
        limits_from=limits.n,
        audits={name: audited.report for name, audited in audits.items()},
        sheets={name: data_uri(sheet(audited, title=name)) for name, audited in audits.items()},
        overview=data_uri(Image.open(run / "before_and_after.png")),
        growth=data_uri(Image.open(growth)) if growth.exists() else None,
        loss=loss_curve(metrics),
        audit_page=audit_page.relative_to(run).as_posix(),
        prepared=prepared,
        offset_from=prepared.start_distribution.offset_from,
        total=prepared.start_distribution.config.num_train_timesteps,
    )
    return write_whole(page, run / "report.html")


def loss_curve(
    metrics: Sequence[Mapping[str, Any]], *, width: int = 720, height: int = 180
) -> dict[str, Any]:
    """SVG polylines over steps, log scale: the loss inside and outside the offset range, and held out."""
    names = {
        "loss_elsewhere": "elsewhere",
        "loss_offset_range": "offset range",
        "held_out_loss": "held out",
    }
    series = {
        label: [(row["step"], row[key]) for row in metrics if row.get(key, 0) > 0]
        for key, label in names.items()
    }
    values = [value for points in series.values() for _, value in points]
    if not values:
        return {"lines": {}}
    last = max(step for points in series.values() for step, _ in points)
    low, high = math.log(min(values)), math.log(max(values))
    spread = (high - low) or 1.0
    lines = {
        label: " ".join(
            f"{width * step / last:.1f},{height * (1 - (math.log(value) - low) / spread):.1f}"
            for step, value in points
        )
        for label, points in series.items()
        if points
    }
    return {
        "lines": lines,
        "width": width,
        "height": height,
        "last": last,
        "low": min(values),
        "high": max(values),
    }
