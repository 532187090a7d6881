"""Intervals for rates and other figures over pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

CONFIDENCE = 0.95
_LEVELS = 4096  # levels that scores are rounded to for the AUROC


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval; all NaN where there is nothing to count.

    Attributes:
        value: the figure.
        low, high: ends of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_json(self) -> dict[str, float | None]:
        """As numbers for a JSON file, None for what is not known."""
        parts = {"value": self.value, "low": self.low, "high": self.high}
        return {name: part if math.isfinite(part) else None for name, part in parts.items()}


NOTHING = Estimate(math.nan, math.nan, math.nan)


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Estimate:
    """A rate and Wilson's score interval, for independent trials of one probability.

    It holds its confidence on average over probabilities also at rates near 0 and 1, and is never
    empty: 0 of 20 gives [0, 0.16].

    Source: Wilson, 1927; Brown, Cai and DasGupta, 2001.

    Example:
        >>> print(wilson_interval(0, 20))
        0.000 [0.000, 0.161]
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be from 0 to trials = {trials}, got {successes}.")
    if trials == 0:
        return NOTHING
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    spread = 1 + z**2 / trials
    centre = (rate + z**2 / (2 * trials)) / spread
    half = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2)) / spread
    return Estimate(
        rate,
        0.0 if successes == 0 else centre - half,
        1.0 if successes == trials else centre + half,
    )


def bootstrap_interval(
    statistic: Callable[[Tensor], float],
    number: int,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A figure over pictures and its percentile bootstrap interval: pictures are resampled.

    Args:
        statistic: the figure from how often each picture counts, (number,), float64; NaN where a
            draw leaves it without meaning (such draws are left out).
        number: of pictures.
        confidence: of the interval.
        resamples: draws.
        seed: of the draws.

    Source: Efron, 1979. With fewer than about 10 pictures the interval is too narrow.

    Example:
        >>> errors = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
        >>> print(bootstrap_interval(lambda counts: float(counts @ errors / counts.sum()), 4))
        2.500 [1.500, 3.500]
    """
    value = statistic(torch.ones(number, dtype=torch.float64))
    if math.isnan(value):
        return NOTHING
    drawn = [statistic(counts) for counts in _draws(number, resamples, seed)]
    values = torch.tensor([x for x in drawn if not math.isnan(x)], dtype=torch.float64)
    return _percentiles(value, values, confidence)


def mean_interval(
    values: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The mean of a figure of each picture, with its :func:`bootstrap_interval`.

    Args:
        values: one of each picture; where one is NaN, so is the mean.
        confidence, resamples, seed: as there.

    Example:
        >>> print(mean_interval([1.0, 2.0, 3.0, 4.0]))
        2.500 [1.500, 3.500]
    """
    each = torch.tensor(values, dtype=torch.float64)
    if not len(each) or each.isnan().any():
        return NOTHING
    drawn = _draws(len(each), resamples, seed) @ each / len(each)
    return _percentiles(float(each.mean()), drawn, confidence)


@lru_cache(maxsize=8)
def _draws(number: int, resamples: int, seed: int) -> Tensor:
    """How often each picture counts in each draw, (resamples, number), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [
            torch.bincount(
                torch.randint(number, (number,), generator=generator), minlength=number
            ).double()
            for _ in range(resamples)
        ]
    )


def _percentiles(value: float, drawn: Tensor, confidence: float) -> Estimate:
    tail = (1 - confidence) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = drawn.quantile(ends).tolist()
    return Estimate(value, low, high)


def auroc_of_pictures(
    scores: Sequence[Tensor] | Tensor, truth: Sequence[Tensor] | Tensor
) -> Callable[[Tensor], float]:
    """The area under the ROC curve over all pixels, for :func:`bootstrap_interval`.

    Exact for up to 4096 different scores; of more, neighbours are taken as equal.

    Args:
        scores: by picture, (pixels,).
        truth: by picture, (pixels,), bool: what the scores should predict.

    Returns:
        The figure from how often each picture counts, (pictures,), float64; NaN where all pixels
        or none are true.

    Source: the Mann-Whitney statistic.

    Example:
        >>> scores = [torch.tensor([0.1, 0.4, 0.35, 0.8])]
        >>> truth = [torch.tensor([False, False, True, True])]
        >>> auroc_of_pictures(scores, truth)(torch.ones(1, dtype=torch.float64))
        0.75
    """
    ordered = torch.cat([each.flatten() for each in scores]).sort().values
    picks = torch.linspace(0, len(ordered) - 1, min(_LEVELS, len(ordered))).long()
    edges = ordered[picks].unique()
    of_level = torch.zeros(2, len(scores), len(edges) + 1, dtype=torch.float64)
    for number, (values, chosen) in enumerate(zip(scores, truth, strict=True)):
        levels = torch.searchsorted(edges, values.contiguous(), right=True)
        for which, mask in enumerate((chosen, ~chosen)):
            of_level[which, number] = torch.bincount(levels[mask], minlength=len(edges) + 1)

    def statistic(counts: Tensor) -> float:
        positives, negatives = counts @ of_level[0], counts @ of_level[1]
        pairs = float(positives.sum() * negatives.sum())
        below = negatives.cumsum(dim=0) - negatives / 2
        return float(positives @ below) / pairs if pairs else math.nan

    return statistic
