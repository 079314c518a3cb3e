"""The rules of the on-brand look: which ones a picture breaks, and how, in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from .criteria import CRITERIA, FLOORS, POOLED, RULES, Criterion, Range
from .limits import Limits, background_distance, write_json
from .look.foreground import Look

__all__ = ["FLOORS", "RULES", "Failure", "Limits", "Range", "broken", "compared", "describe",
           "describe_limits", "judge", "write_json"]  # fmt: skip


_SIDEWAYS, _UPRIGHT = "sideways (right is +)", "up or down (down is +)"
_BETWEEN = "allowed {low} to {high}"
# of each criterion, what its failure says and the form of its numbers
WORDS = {
    "background": ("backdrop colour is Delta E {value} from the catalogue's, at most {high}", ".1f"),
    "uniformity": ("backdrop varies by Delta E {value}, at most {high}", ".1f"),
    "frame_contact": ("product touches {value} of the picture's edge, at most {high}", ".1%"),
    "offset_x": (f"product sits {{value}} {_SIDEWAYS}, {_BETWEEN}", "+.1%"),
    "offset_y": (f"product sits {{value}} {_UPRIGHT}, {_BETWEEN}", "+.1%"),
    "extent": (f"product is {{value}} of the frame long, {_BETWEEN}", ".1%"),
    "area": (f"product covers {{value}} of the frame, {_BETWEEN}", ".1%"),
    "pose": ("outline differs by {value} from the nearest in the catalogue, at most {high}", ".0%"),
    "lightness": (f"product's mean lightness is L {{value}}, {_BETWEEN}", ".1f"),
    "contrast": (f"product's contrast is L {{value}}, {_BETWEEN}", ".1f"),
    "light_slope": (f"product is {{value}} brighter to the right, {_BETWEEN}", "+.0%"),
    "shadow": (f"backdrop at the product's foot is darker by L {{value}}, {_BETWEEN}", ".1f"),
    "shadow_depth": (f"shadow at the product's foot is L {{value}} deep, {_BETWEEN}", ".1f"),
    "kind": ("picture is {value} times as far from the catalogue as its own, at most {high}", ".1f"),
    "text": ("picture's score with its caption is {value}, at least {low}", ".3f"),
}


class Failure(NamedTuple):
    """A broken rule and, in plain words with the measured value and the limit, how."""

    rule: str
    reason: str


def compared(look: Look, *, limits: Limits, class_name: str | None = None) -> dict[str, float]:
    """A picture's measures, and how far its backdrop, pose and kind are from the catalogue's.

    Raises ValueError on a class never seen, and on limits without the catalogue's own pictures.
    """
    limits.of(class_name)
    if limits.reference is None:
        raise ValueError(
            "limits must hold the catalogue's own pictures, as Limits.save writes them, got those of a report"
        )
    pose = math.nan
    if look.outline is not None:
        own = class_name if "pose" in limits.by_class.get(class_name or "", {}) else None
        pose = float(limits.reference.outlines.nearest(look.outline[None], class_name=own)[0])
    return look.values | {
        "background": background_distance(look.values, limits.backdrops),
        "pose": pose,
        "kind": float(limits.reference.kind.distance(look.features[None])[0]),
    }


def judge(look: Look, *, limits: Limits, class_name: str | None = None) -> list[Failure]:
    """The rules one picture breaks, given its `look()`; an empty list passes.

    A picture without a product breaks `scale`; its place, pose, light and shadow are then not judged.
    """
    return broken(compared(look, limits=limits, class_name=class_name), limits=limits, class_name=class_name)


def broken(values: dict[str, float], *, limits: Limits, class_name: str | None = None) -> list[Failure]:
    """The rules that `compared` values break."""
    allowed = limits.of(class_name)
    empty = values["area"] == 0
    failures = [Failure("scale", "no product stands out from the backdrop")] if empty else []
    failures += [
        Failure(criterion.rule, describe(name, values[name], allowed=allowed[name]))
        for name, criterion in CRITERIA.items()
        if name in allowed and name in values and not (empty and name not in POOLED)
        if values[name] < allowed[name].low or values[name] > allowed[name].high
    ]
    return failures


def describe(name: str, value: float, *, allowed: Range) -> str:
    """How `value` breaks the range of criterion `name`, in plain words.

    Told with more digits where the value would otherwise read like the limit that it breaks.
    """
    words, form = WORDS[name]
    more = digits_to_tell(value, allowed, lambda number, more: _told(number, form, more))
    told = (_told(each, form, more) for each in (value, *allowed))
    return words.format(**dict(zip(("value", "low", "high"), told, strict=True)))


def digits_to_tell(value: float, allowed: Range, tell: Callable[[float, int], str]) -> int:
    """How many digits more, up to 3, a value needs so as not to read like the limit that it breaks.

    tell: a number and how many digits more -> text.
    """
    limit = allowed.low if value < allowed.low else allowed.high
    return next((more for more in range(4) if tell(value, more) != tell(limit, more)), 0)


def span(allowed: Range, criterion: Criterion, tell: Callable[[float], str]) -> str:
    """An allowed range as text; an end that no value can pass is left out."""
    low, high = tell(allowed.low), tell(allowed.high)
    if allowed.low <= criterion.lowest:
        return "any" if allowed.high >= criterion.highest else f"at most {high}"
    return f"at least {low}" if allowed.high >= criterion.highest else f"{low} to {high}"


def _told(value: float, form: str, more: int = 0) -> str:
    """A number in a form such as "+.1%", with so many digits more, and no minus before a zero."""
    sign, digits, kind = form.partition(".")[0], int(form[-2]), form[-1]
    return f"{value:{sign}z.{digits + more}{kind}}"


def describe_limits(limits: Limits, *, rule: str) -> str:
    """What the pooled limits of one rule allow, in a few words."""
    allowed = limits.pooled
    if rule in ("pose", "kind") and allowed[rule].high == CRITERIA[rule].highest:
        return "anything: too few pictures to tell"
    match rule:
        case "background":
            colours = " or ".join(
                f"({', '.join(f'{v:z.1f}' for v in colour)})" for colour in limits.backdrops
            )
            return f"Delta E {allowed['background'].high:.1f} from Lab {colours}"
        case "uniformity":
            return f"Delta E {allowed['uniformity'].high:.1f} around the border"
        case "cropping":
            return f"{allowed['frame_contact'].high:.1%} of the edge touched"
        case "centring":
            return f"x {_span(limits, 'offset_x', '.1%')}, y {_span(limits, 'offset_y', '.1%')}"
        case "scale":
            return f"length {_span(limits, 'extent', '.1%')}, area {_span(limits, 'area', '.1%')}"
        case "pose":
            return f"outline within {allowed['pose'].high:.0%} of the catalogue's nearest"
        case "light":
            lightness, contrast = (_span(limits, name, ".0f") for name in ("lightness", "contrast"))
            slope = _span(limits, "light_slope", "+.0%")
            return f"L {lightness}, contrast {contrast}, {slope} brighter to the right"
        case "shadow":
            return f"L {_span(limits, 'shadow', '.1f')}, depth {_span(limits, 'shadow_depth', '.0f')}"
        case "kind":
            return f"{allowed['kind'].high:.1f} times as far as the catalogue's own"
        case _:
            return f"score at least {allowed['text'].low:z.3f}"


def _span(limits: Limits, name: str, form: str) -> str:
    return span(limits.pooled[name], CRITERIA[name], lambda end: _told(end, form))
