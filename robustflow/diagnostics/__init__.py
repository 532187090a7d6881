"""Tools for exploding inverses: watch a model sample, bound, score and guard it."""

import importlib
from typing import TYPE_CHECKING, Any

from robustflow.diagnostics.artifacts import (
    Artifacts,
    Judgement,
    Thresholds,
    find_artifacts,
    judge_detectors,
)
from robustflow.diagnostics.bounds import Bounds, Line, Range, bounds_of
from robustflow.diagnostics.certify import Certificate, Row, certify
from robustflow.diagnostics.gain_score import GainScore
from robustflow.diagnostics.growth import Contribution, Growth
from robustflow.diagnostics.guards import (
    Guard,
    GuardRow,
    clamp_inverse,
    cool_latents,
    hold_scale,
    measure_guards,
    project_onto_observation,
    resample_onsets,
)
from robustflow.diagnostics.monitor import (
    ExplodingInverseError,
    ExplosionWarning,
    InverseMonitor,
)
from robustflow.diagnostics.onsets import Onset
from robustflow.diagnostics.runs import WatchedRun
from robustflow.diagnostics.scores import (
    KNNScore,
    MahalanobisScore,
    RelativeMahalanobisScore,
    conformal_threshold,
    tap,
)
from robustflow.diagnostics.search import Found, SearchResult
from robustflow.diagnostics.table import LayerRecord, MonitorReport

if TYPE_CHECKING:
    from robustflow.diagnostics.posterior.report import PosteriorReport, posterior_report
    from robustflow.diagnostics.report.report import robustness_report
    from robustflow.diagnostics.report.result import RobustnessReport

__all__ = [
    "Artifacts",
    "Bounds",
    "Certificate",
    "Contribution",
    "ExplodingInverseError",
    "ExplosionWarning",
    "Found",
    "GainScore",
    "Growth",
    "Guard",
    "GuardRow",
    "InverseMonitor",
    "Judgement",
    "KNNScore",
    "LayerRecord",
    "Line",
    "MahalanobisScore",
    "MonitorReport",
    "Onset",
    "PosteriorReport",
    "Range",
    "RelativeMahalanobisScore",
    "RobustnessReport",
    "Row",
    "SearchResult",
    "Thresholds",
    "WatchedRun",
    "bounds_of",
    "certify",
    "clamp_inverse",
    "conformal_threshold",
    "cool_latents",
    "find_artifacts",
    "hold_scale",
    "judge_detectors",
    "measure_guards",
    "posterior_report",
    "project_onto_observation",
    "resample_onsets",
    "robustness_report",
    "tap",
]

_LATER = {  # what needs an extra, and its module
    "PosteriorReport": "robustflow.diagnostics.posterior.report",
    "posterior_report": "robustflow.diagnostics.posterior.report",
    "RobustnessReport": "robustflow.diagnostics.report.result",
    "robustness_report": "robustflow.diagnostics.report.report",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
