"""Ranks of the truth among samples, and whether they are uniform."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import kstest
from torch import Tensor


def ranks(samples: Tensor, truth: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """How many samples are below the truth, value by value; ties are broken at random.

    If the truth and the K samples are draws of one distribution, the rank is uniform on 0, ..., K.

    Args:
        samples: (K, \\*S).
        truth: (\\*S).
        generator: breaks the ties, on the CPU.

    Returns:
        (\\*S), whole numbers from 0 to K.

    Example:
        >>> ranks(torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]]), torch.tensor([2.5, 9.0]))
        tensor([2, 3])
    """
    below = (samples < truth).sum(dim=0)
    equal = (samples == truth).sum(dim=0)
    if not equal.any():
        return below
    lots = torch.rand(equal.shape, generator=generator).to(equal.device)
    return below + ((equal + 1) * lots).long().clamp(max=equal)


@dataclass(frozen=True)
class Uniformity:
    """How far ranks are from uniform ones.

    Attributes:
        p_value: of the Kolmogorov-Smirnov test; small: they are not uniform.
        shift: of their mean, in its standard errors; positive: the truth lies above the samples.
        width: of their variance, in its standard errors; positive: too many at both ends, so the
            samples are too narrow; negative: too many in the middle, so they are too wide.
    """

    p_value: float
    shift: float
    width: float

    def __str__(self) -> str:
        return f"p = {self.p_value:.3g}, shift {self.shift:+.1f}, width {self.width:+.1f}"


def spread_out(values: Tensor, number: int, generator: torch.Generator | None = None) -> Tensor:
    """Ranks 0, ..., ``number`` as values in [0, 1), random within their step; float64.

    Uniform ranks become exactly uniform values, so that tests of those hold for any ``number``.
    """
    within = torch.rand(values.shape, generator=generator, dtype=torch.float64)
    return (values.cpu() + within) / (number + 1)


def uniformity(values: Tensor) -> Uniformity:
    """Test values in [0, 1], (N,), for uniformity.

    Source: Talts et al., 2018, Validating Bayesian inference algorithms with simulation-based
    calibration (arXiv:1804.06788), on ranks made continuous by :func:`spread_out`.

    Example:
        >>> uniformity(torch.linspace(0.005, 0.995, 100, dtype=torch.float64)).p_value > 0.99
        True
    """
    number = values.numel()
    centred = values.double() - 0.5
    # A uniform value's centred powers: mean 0, variance 1/12; of its square 1/12, variance 1/180.
    shift = float(centred.mean()) * math.sqrt(12 * number)
    width = (float(centred.square().mean()) - 1 / 12) * math.sqrt(180 * number)
    return Uniformity(float(kstest(values.cpu().numpy(), "uniform").pvalue), shift, width)
