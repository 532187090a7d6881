"""The numbers of a posterior report, which its figure draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from robustflow.diagnostics.posterior.bounds import QualityBound
from robustflow.diagnostics.posterior.conformal import ConformalIntervals
from robustflow.diagnostics.posterior.coverage import Coverage
from robustflow.diagnostics.posterior.ranks import Uniformity
from robustflow.diagnostics.posterior.spread import Spread
from robustflow.diagnostics.posterior.tarp import ExpectedCoverage


@dataclass(frozen=True)
class Measures:
    """Fields of :class:`~robustflow.diagnostics.PosteriorReport`, which says what each is."""

    pictures: int
    samples: int
    shape: tuple[int, ...]
    coverage: tuple[Coverage, ...]
    coverage_map: Tensor
    coverage_level: float
    ranks: Mapping[str, Tensor] = field(repr=False)
    rank_values: Mapping[str, Tensor] = field(repr=False)
    rank_tests: Mapping[str, Uniformity]
    tarp: ExpectedCoverage
    spread: Spread = field(repr=False)
    intervals: ConformalIntervals | None
    bounds: Mapping[str, QualityBound]

    @property
    def rank_p_value(self) -> float:
        """Of all functionals together: the smallest, times their number (Bonferroni), at most 1."""
        smallest = min(each.p_value for each in self.rank_tests.values())
        return min(1.0, len(self.rank_tests) * smallest)
