"""The rules of the on-brand look: which ones a picture breaks, and how, in plain words."""

from __future__ import annotations

import math
from typing import NamedTuple

from .criteria import CRITERIA, FLOORS, POOLED, RULES, Range
from .foreground import Look
from .limits import Limits, background_distance, write_json

__all__ = ["FLOORS", "RULES", "Failure", "Limits", "Range", "broken", "compared", "describe",
           "describe_limits", "judge", "write_json"]  # fmt: skip


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
        own = class_name if class_name in limits.by_class else None
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
    """How `value` breaks the range of criterion `name`, in plain words."""
    low, high = allowed
    ends = f"allowed {low:.1%} to {high:.1%}"
    levels = f"allowed {low:.1f} to {high:.1f}"
    match name:
        case "background":
            return f"backdrop colour is Delta E {value:.1f} from the catalogue's, at most {high:.1f}"
        case "uniformity":
            return f"backdrop varies by Delta E {value:.1f}, at most {high:.1f}"
        case "frame_contact":
            return f"product touches {value:.1%} of the picture's edge, at most {high:.1%}"
        case "offset_x":
            return f"product sits {value:+.1%} sideways (right is +), allowed {low:+.1%} to {high:+.1%}"
        case "offset_y":
            return f"product sits {value:+.1%} up or down (down is +), allowed {low:+.1%} to {high:+.1%}"
        case "extent":
            return f"product is {value:.1%} of the frame long, {ends}"
        case "area":
            return f"product covers {value:.1%} of the frame, {ends}"
        case "pose":
            return f"outline differs by {value:.0%} from the nearest in the catalogue, at most {high:.0%}"
        case "lightness":
            return f"product's mean lightness is L {value:.1f}, {levels}"
        case "contrast":
            return f"product's contrast is L {value:.1f}, {levels}"
        case "light_slope":
            return f"product is {value:+.0%} brighter to the right, allowed {low:+.0%} to {high:+.0%}"
        case "shadow":
            return f"backdrop at the product's foot is darker by L {value:.1f}, {levels}"
        case "shadow_depth":
            return f"shadow at the product's foot is L {value:.1f} deep, {levels}"
        case "kind":
            return f"picture is {value:.1f} times as far from the catalogue as its own, at most {high:.1f}"
        case _:
            return f"picture's score with its caption is {value:.3f}, at least {low:.3f}"


def describe_limits(limits: Limits, *, rule: str) -> str:
    """What the pooled limits of one rule allow, in a few words."""
    allowed = limits.pooled
    if rule in ("pose", "kind") and allowed[rule].high == CRITERIA[rule].highest:
        return "anything: too few pictures to tell"
    match rule:
        case "background":
            colours = " or ".join(f"({', '.join(f'{v:.1f}' for v in colour)})" for colour in limits.backdrops)
            return f"Delta E {allowed['background'].high:.1f} from Lab {colours}"
        case "uniformity":
            return f"Delta E {allowed['uniformity'].high:.1f} around the border"
        case "cropping":
            return f"{allowed['frame_contact'].high:.1%} of the edge touched"
        case "centring":
            return f"x {_percent(allowed['offset_x'])}, y {_percent(allowed['offset_y'])}"
        case "scale":
            return f"length {_percent(allowed['extent'])}, area {_percent(allowed['area'])}"
        case "pose":
            return f"outline within {allowed['pose'].high:.0%} of the catalogue's nearest"
        case "light":
            light, contrast, slope = (allowed[name] for name in ("lightness", "contrast", "light_slope"))
            return (
                f"L {light.low:.0f} to {light.high:.0f}, contrast {contrast.low:.0f} to {contrast.high:.0f}, "
                f"{slope.low:+.0%} to {slope.high:+.0%} brighter to the right"
            )
        case "shadow":
            around, depth = allowed["shadow"], allowed["shadow_depth"]
            return f"L {around.low:.1f} to {around.high:.1f}, depth {depth.low:.0f} to {depth.high:.0f}"
        case "kind":
            return f"{allowed['kind'].high:.1f} times as far as the catalogue's own"
        case _:
            return f"score at least {allowed['text'].low:.3f}"


def _percent(allowed: Range) -> str:
    return f"{allowed.low:.1%} to {allowed.high:.1%}"
