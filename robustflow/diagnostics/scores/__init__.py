"""Scores: how far the features of a conditional input are from those of the training pictures."""

from robustflow.diagnostics.scores.conformal import conformal_threshold, pictures_needed
from robustflow.diagnostics.scores.features import Features
from robustflow.diagnostics.scores.knn import KNNScore
from robustflow.diagnostics.scores.mahalanobis import MahalanobisScore
from robustflow.diagnostics.scores.relative import RelativeMahalanobisScore
from robustflow.diagnostics.scores.score import FeatureScore
from robustflow.diagnostics.scores.tap import Tap, tap

__all__ = [
    "FeatureScore",
    "Features",
    "KNNScore",
    "MahalanobisScore",
    "RelativeMahalanobisScore",
    "Tap",
    "conformal_threshold",
    "pictures_needed",
    "tap",
]
