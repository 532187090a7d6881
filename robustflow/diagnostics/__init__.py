"""Exploding inverses: seen while a model samples, bounded, scored, and cured."""

from robustflow.diagnostics.bounds import Bounds, Line, Range, bounds_of
from robustflow.diagnostics.certify import Certificate, Row, certify
from robustflow.diagnostics.growth import Contribution, Growth
from robustflow.diagnostics.scores import (
    KNNScore,
    MahalanobisScore,
    RelativeMahalanobisScore,
    conformal_threshold,
    tap,
)

__all__ = [
    "Bounds",
    "Certificate",
    "Contribution",
    "Growth",
    "KNNScore",
    "Line",
    "MahalanobisScore",
    "Range",
    "RelativeMahalanobisScore",
    "Row",
    "bounds_of",
    "certify",
    "conformal_threshold",
    "tap",
]
