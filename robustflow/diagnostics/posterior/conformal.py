"""Split-conformal intervals around the mean, which hold for any sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow.diagnostics.intervals import NOTHING, Estimate, wilson_interval
from robustflow.diagnostics.scores.conformal import conformal_threshold, pictures_needed


@dataclass(frozen=True)
class ConformalIntervals:
    """``mean +- multiplier * standard deviation`` of the samples, pixel by pixel.

    With probability at least ``1 - alpha``, a new picture has at least ``share`` of its pixels
    inside, if it and the pictures of the calibration are exchangeable. That holds for any sampler
    and any number of pictures; a bad sampler gets wide intervals.

    Attributes:
        alpha: probability that a picture is not covered.
        share: of a picture's pixels that must lie inside.
        multiplier: of the standard deviation; about 1.64 for calibrated Gaussian samples at a
            share of 0.9, and more with few samples.
        pictures: number of pictures that it was calibrated on.
        held: the share of the other pictures that are covered; NaN if there are none.
    """

    alpha: float
    share: float
    multiplier: float
    pictures: int
    held: Estimate

    def interval(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, (\\*S), from a new picture's samples (K, \\*S), as many as before.

        Example:
            >>> made = ConformalIntervals(0.1, 0.9, 2.0, 20, NOTHING)
            >>> made.interval(torch.tensor([[0.0], [2.0]]))[1]
            tensor([3.8284])
        """
        deviation, mean = torch.std_mean(samples, dim=0)
        return mean - self.multiplier * deviation, mean + self.multiplier * deviation


def needed_multiplier(samples: Tensor, truth: Tensor, share: float) -> float:
    """The smallest multiplier with at least ``share`` of the pixels of the truth inside."""
    deviation, mean = torch.std_mean(samples, dim=0)
    error = (truth - mean).abs()
    multiples = torch.where(error == 0, 0.0, error / deviation).flatten()
    rank = max(1, math.ceil(share * multiples.numel() - 1e-9))
    return float(multiples.kthvalue(rank).values)


def split(number: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
    """Which pictures calibrate and which check: at random, half of each, or all that is needed.

    Returns:
        Their indices; None where there are too few pictures for ``alpha``.
    """
    calibrating = max(number - number // 2, pictures_needed(alpha))
    if calibrating > number:
        return None
    order = torch.randperm(number, generator=generator)
    return order[:calibrating], order[calibrating:]


def calibrate(scores: Sequence[float], parts: tuple[Tensor, Tensor], alpha: float) -> float:
    """The threshold of the calibrating pictures' scores."""
    return conformal_threshold(torch.tensor(scores, dtype=torch.float64)[parts[0]], alpha)


def held(scores: Sequence[float], parts: tuple[Tensor, Tensor], threshold: float) -> Estimate:
    """The rate of the checking pictures whose score is not above the threshold."""
    others = torch.tensor(scores, dtype=torch.float64)[parts[1]]
    if not len(others):
        return NOTHING
    return wilson_interval(int((others <= threshold).sum()), len(others))


def conformal_intervals(
    multipliers: Sequence[float], parts: tuple[Tensor, Tensor], alpha: float, share: float
) -> ConformalIntervals:
    """From each picture's :func:`needed_multiplier`.

    Source: split conformal prediction, Vovk, Gammerman and Shafer, 2005; Lei et al., 2018
    (arXiv:1604.04173), with a score for whole pictures.
    """
    multiplier = calibrate(multipliers, parts, alpha)
    return ConformalIntervals(
        alpha, share, multiplier, len(parts[0]), held(multipliers, parts, multiplier)
    )
