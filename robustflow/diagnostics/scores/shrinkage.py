"""Oracle-approximating shrinkage of a covariance, from sums that stream."""

from __future__ import annotations

import torch
from torch import Tensor


def oas_shrinkage(covariance: Tensor, number: float) -> float:
    """How far to shrink a covariance S towards tr(S)/p times the identity, in [0, 1].

    Args:
        covariance: S, the maximum-likelihood covariance (p, p) of Gaussian samples.
        number: n, how many independent samples it comes from.

    The formula is that of scikit-learn's ``OAS``, which leaves out the terms 2/p of
    Chen, Wiesel, Eldar and Hero, 2010 (arXiv:0907.4698), equation 23:

        (tr S^2 + (tr S)^2) / ((n + 1) (tr S^2 - (tr S)^2 / p))          at most 1

    Example:
        >>> round(oas_shrinkage(torch.diag(torch.tensor([1.0, 3.0])), 99), 3)
        0.13
    """
    size = covariance.shape[0]
    square, trace = float(covariance.square().sum()), float(covariance.trace())
    if size == 1:
        return 0.0  # a variance: nothing to shrink
    excess = (number + 1) * (square - trace**2 / size)
    weight = square + trace**2
    return 1.0 if weight >= excess else weight / excess


def shrink(covariance: Tensor, shrinkage: float) -> Tensor:
    """``(1 - shrinkage) S + shrinkage tr(S)/p I``."""
    size = covariance.shape[0]
    identity = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    return (1 - shrinkage) * covariance + shrinkage * covariance.trace() / size * identity
