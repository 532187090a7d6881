"""Errors of the mean against the spread of the samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow.diagnostics.intervals import Estimate, bootstrap_interval, mean_interval

_BINS = 10


@dataclass(frozen=True)
class Spread:
    """Errors, spreads and z-scores, z = (truth - mean) / standard deviation.

    Attributes:
        error_map: root mean square of truth - mean over pictures, (\\*S).
        spread_map: of the standard deviation of the samples, likewise; enlarged by the error that
            the mean of K samples has itself, so that both maps agree where samples are calibrated.
        z_map: of the z-score, likewise, divided by what it is for calibrated Gaussian samples.
        ratio: spread over error, over all pixels: below 1 for samples that are too narrow.
        z_mean: mean of the z-score: the bias in standard deviations.
        z_size: root mean square of the z-score, divided as the map is.
        bins: pixels in bins of equally many, from the smallest spread to the largest: root mean
            square spread (enlarged likewise) and error.
    """

    error_map: Tensor
    spread_map: Tensor
    z_map: Tensor
    ratio: Estimate
    z_mean: Estimate
    z_size: Estimate
    bins: tuple[tuple[float, float], ...]


class SpreadSums:
    """Sums over pictures, from which :class:`Spread` is made.

    With a variance v of K calibrated samples, E (truth - mean)^2 = (1 + 1/K) E v for every
    distribution, and E z^2 = (1 + 1/K) (K - 1) / (K - 3) for a Gaussian one, where z follows
    sqrt(1 + 1/K) times Student's t.

    Source: Fortin et al., 2014, Why should ensemble spread match the RMSE of the ensemble mean?
    (doi:10.1175/JHM-D-14-0008.1).

    Args:
        number: K, of the samples of a picture; at least 4, or there is no expected z-score.
    """

    def __init__(self, number: int) -> None:
        self._inflation = 1 + 1 / number
        self._z_square = self._inflation * (number - 1) / (number - 3)
        self._errors: list[Tensor] = []
        self._variances: list[Tensor] = []
        self._zs: list[Tensor] = []

    def add(self, samples: Tensor, truth: Tensor) -> None:
        """One picture's samples (K, \\*S) and truth (\\*S)."""
        variance, mean = torch.var_mean(samples.double(), dim=0)
        error = truth.double() - mean
        # A value that is the same in all samples, and right, has z = 0.
        z = torch.where(error == 0, 0.0, error / variance.sqrt())
        self._errors.append(error.float().cpu())
        self._variances.append((self._inflation * variance).float().cpu())
        self._zs.append(z.float().cpu())

    def result(self) -> Spread:
        """All of it; pictures count alike."""
        errors, variances, zs = map(torch.stack, (self._errors, self._variances, self._zs))
        squares = errors.square()
        flat = (squares, variances, zs, zs.square())
        error, spread, z, z_square = (each.flatten(1).double().mean(dim=1) for each in flat)

        def ratio(counts: Tensor) -> float:
            wrong = float(counts @ error)
            return math.sqrt(float(counts @ spread) / wrong) if wrong else math.nan

        def root(counts: Tensor) -> float:
            return math.sqrt(float(counts @ z_square / counts.sum()) / self._z_square)

        number = len(errors)
        return Spread(
            error_map=squares.mean(dim=0).sqrt(),
            spread_map=variances.mean(dim=0).sqrt(),
            z_map=(zs.square().mean(dim=0) / self._z_square).sqrt(),
            ratio=bootstrap_interval(ratio, number),
            z_mean=mean_interval(z.tolist()),
            z_size=bootstrap_interval(root, number),
            bins=_bins(variances.flatten(), squares.flatten()),
        )


def _bins(variances: Tensor, squares: Tensor) -> tuple[tuple[float, float], ...]:
    order = variances.argsort()
    parts = zip(variances[order].chunk(_BINS), squares[order].chunk(_BINS), strict=True)
    return tuple(
        (math.sqrt(float(variance.double().mean())), math.sqrt(float(square.double().mean())))
        for variance, square in parts
    )
