"""Images to numbers and pictures: does what was generated keep the catalogue's look?"""

from .audit import AuditReport, audit, calibrate, compare_table
from .contact_sheet import contact_sheet
from .foreground import measure
from .rules import FLOORS, RULES, Failure, Limits, Range

__all__ = [
    "FLOORS",
    "RULES",
    "AuditReport",
    "Failure",
    "Limits",
    "Range",
    "audit",
    "calibrate",
    "compare_table",
    "contact_sheet",
    "measure",
]
