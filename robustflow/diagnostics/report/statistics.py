"""How well a score predicts failures: AUROC, rank correlation, rates by bin, intervals.

Pixels of a picture resemble each other, so intervals come from resampling whole pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from robustflow.diagnostics.intervals import Estimate, auroc_of_pictures, bootstrap_interval

Array = NDArray[np.float64]
RESAMPLES = 500


def spearman(first: Array, second: Array) -> float:
    """Rank correlation; NaN for fewer than three pairs, or where one side is constant.

    Example:
        >>> round(spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0])), 6)
        1.0
    """
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def over_pictures(
    statistic: Callable[[Sequence[int]], float],
    number: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A statistic of pictures, with its bootstrap interval over pictures.

    Args:
        statistic: of the pictures with these indices, which may repeat; NaN where undefined.
        number: of pictures.
        resamples, seed: of the bootstrap.
    """

    def of_counts(counts: Tensor) -> float:
        return statistic(torch.arange(number).repeat_interleave(counts.long()).tolist())

    return bootstrap_interval(of_counts, number, resamples=resamples, seed=seed)


def pixel_auroc(scores: Sequence[Array], failed: Sequence[NDArray[np.bool_]]) -> Estimate:
    """AUROC over all pixels of all pictures; one array a picture."""
    statistic = auroc_of_pictures(*_tensors(scores, failed))
    return bootstrap_interval(statistic, len(scores), resamples=RESAMPLES)


def auroc_within(scores: Sequence[Array], failed: Sequence[NDArray[np.bool_]]) -> Estimate:
    """The mean over pictures of each picture's own AUROC."""
    one = torch.ones(1, dtype=torch.float64)
    pairs = zip(*_tensors(scores, failed), strict=True)
    own = np.array([auroc_of_pictures([s], [f])(one) for s, f in pairs])

    def statistic(chosen: Sequence[int]) -> float:
        values = own[list(chosen)]
        return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan

    return over_pictures(statistic, len(scores))


def _tensors(
    scores: Sequence[Array], failed: Sequence[NDArray[np.bool_]]
) -> tuple[list[Tensor], list[Tensor]]:
    return (
        [torch.from_numpy(np.array(each)) for each in scores],
        [torch.from_numpy(np.array(each)) for each in failed],
    )


def rank_correlation(scores: Array, rates: Array) -> Estimate:
    """Spearman correlation, over pictures, of the score and the rate of failures."""

    def statistic(chosen: Sequence[int]) -> float:
        index = list(chosen)
        return spearman(scores[index], rates[index])

    return over_pictures(statistic, len(scores))


@dataclass(frozen=True)
class Bin:
    """Pixels whose score lies in a range.

    Attributes:
        low, high: of the scores.
        pixels: how many.
        rate: the fraction that failed.
    """

    low: float
    high: float
    pixels: int
    rate: float


def rates_by_score(scores: Array, failed: NDArray[np.bool_], bins: int = 8) -> list[Bin]:
    """The rate of failures in bins of equally many pixels, from the lowest score to the highest.

    Example:
        >>> [each.rate for each in rates_by_score(np.arange(4.0), np.arange(4) > 1, bins=2)]
        [0.0, 1.0]
    """
    order = np.argsort(scores, kind="stable")
    groups = []
    for part in np.array_split(order, min(bins, len(order))):
        values = scores[part]
        rate = float(failed[part].mean())
        groups.append(Bin(float(values[0]), float(values[-1]), len(part), rate))
    return groups
