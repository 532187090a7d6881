"""Detectors of artifacts in samples, one file for each kind."""

from robustflow.diagnostics.artifacts.find import KINDS, Artifacts, Kind, find_artifacts
from robustflow.diagnostics.artifacts.judge import Judgement, judge_detectors
from robustflow.diagnostics.artifacts.published_rule import HIGHEST, LOWEST, faulty_pixels
from robustflow.diagnostics.artifacts.reference import contrast_map
from robustflow.diagnostics.artifacts.samples import Thresholds

__all__ = [
    "HIGHEST",
    "KINDS",
    "LOWEST",
    "Artifacts",
    "Judgement",
    "Kind",
    "Thresholds",
    "contrast_map",
    "faulty_pixels",
    "find_artifacts",
    "judge_detectors",
]
