"""Exploding inverses: seen while a model samples, bounded, scored, and cured."""

from robustflow.diagnostics.artifacts import (
    Artifacts,
    Judgement,
    Thresholds,
    find_artifacts,
    judge_detectors,
)
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
    "Artifacts",
    "Bounds",
    "Certificate",
    "Contribution",
    "Growth",
    "Judgement",
    "KNNScore",
    "Line",
    "MahalanobisScore",
    "Range",
    "RelativeMahalanobisScore",
    "Row",
    "Thresholds",
    "bounds_of",
    "certify",
    "conformal_threshold",
    "find_artifacts",
    "judge_detectors",
    "tap",
]
