"""Calibration of posterior samples, judged by known truths."""

from robustflow.diagnostics.posterior.bounds import QualityBound
from robustflow.diagnostics.posterior.conformal import ConformalIntervals
from robustflow.diagnostics.posterior.coverage import Coverage
from robustflow.diagnostics.posterior.functionals import linear_functionals
from robustflow.diagnostics.posterior.proper import crps, energy_score
from robustflow.diagnostics.posterior.ranks import Uniformity, ranks, uniformity
from robustflow.diagnostics.posterior.report import PosteriorReport, posterior_report
from robustflow.diagnostics.posterior.spread import Spread
from robustflow.diagnostics.posterior.tarp import expected_coverage

__all__ = [
    "ConformalIntervals",
    "Coverage",
    "PosteriorReport",
    "QualityBound",
    "Spread",
    "Uniformity",
    "crps",
    "energy_score",
    "expected_coverage",
    "linear_functionals",
    "posterior_report",
    "ranks",
    "uniformity",
]
