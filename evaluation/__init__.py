"""Images to numbers and pictures: is what was generated on brand, and how diverse is it?"""

from __future__ import annotations

import importlib
from typing import Any

from .audit import AuditReport, audit, calibrate, compare_table
from .contact_sheet import contact_sheet
from .detection import (
    Detection,
    Detector,
    LayoutScore,
    Wanted,
    best_iou,
    iou,
    layout_scores,
    layout_table,
    success_rate,
    wanted_of,
)
from .diversity import mean_similarity, pairwise_l2, pairwise_ssim, vendi_score
from .look.foreground import measure
from .paired import Comparison, compare, comparison_table, standard_error
from .reproducibility import (
    Calibration,
    Score,
    calibrate_threshold,
    cosines,
    gl_score,
    nearest,
    rp_between,
    rp_conditional,
    rp_score,
)
from .rules import FLOORS, RULES, Failure, Limits, Range
from .scenes import boundary_tv, brisque, l2_background, load_lpips, lpips_background, rmse_foreground

_SIMILARITY = ("CLIP", "Descriptor", "SSCD", "clip_score", "load_clip", "load_sscd", "pick_score")
_NEEDS_TORCH = dict.fromkeys(_SIMILARITY, ".similarity")
_NEEDS_TORCH |= dict.fromkeys(("HubDetector", "load_detector"), ".hub_detector")
__all__ = [
    "FLOORS",
    "RULES",
    "AuditReport",
    "Calibration",
    "Comparison",
    "Detection",
    "Detector",
    "Failure",
    "LayoutScore",
    "Limits",
    "Range",
    "Score",
    "Wanted",
    "audit",
    "best_iou",
    "boundary_tv",
    "brisque",
    "calibrate",
    "calibrate_threshold",
    "compare",
    "compare_table",
    "comparison_table",
    "contact_sheet",
    "cosines",
    "gl_score",
    "iou",
    "l2_background",
    "layout_scores",
    "layout_table",
    "load_lpips",
    "lpips_background",
    "mean_similarity",
    "measure",
    "nearest",
    "pairwise_l2",
    "pairwise_ssim",
    "rmse_foreground",
    "rp_between",
    "rp_conditional",
    "rp_score",
    "standard_error",
    "success_rate",
    "vendi_score",
    "wanted_of",
    *_NEEDS_TORCH,
]


def __getattr__(name: str) -> Any:
    """What looks at pictures with a network, imported when asked for: torch takes a second."""
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NEEDS_TORCH[name], __name__), name)
