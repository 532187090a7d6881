"""Exploding inverses: seen while a model samples, bounded, scored, and cured."""

from robustflow.diagnostics.bounds import Bounds, Line, Range, bounds_of
from robustflow.diagnostics.certify import Certificate, Row, certify
from robustflow.diagnostics.growth import Contribution, Growth

__all__ = [
    "Bounds",
    "Certificate",
    "Contribution",
    "Growth",
    "Line",
    "Range",
    "Row",
    "bounds_of",
    "certify",
]
