"""Proper scores of samples: CRPS of each value, energy score of the whole picture."""

from __future__ import annotations

import torch
from torch import Tensor


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """The continuous ranked probability score of every value, smaller is better; (\\*S).

    ``mean |x_i - truth| - sum over i < j of |x_i - x_j| / (K (K - 1))``: the estimate from K
    samples whose expectation is the score of the distribution they come from.

    Args:
        samples: (K, \\*S), K of at least 2.
        truth: (\\*S).

    Raises:
        ValueError: fewer than 2 samples.

    Source: Gneiting and Raftery, 2007 (doi:10.1198/016214506000001437), section 4.2; the fair
    estimate, Ferro, 2014 (doi:10.1002/qj.2270).

    Example:
        >>> crps(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0]))
        tensor([0.])
    """
    number = _checked(samples)
    ordered = samples.sort(dim=0).values
    # The sum of all |x_i - x_j|, i < j: the i-th smallest is added i times, subtracted K - 1 - i.
    weights = 2 * torch.arange(number, device=samples.device, dtype=samples.dtype) - (number - 1)
    between = torch.tensordot(weights, ordered, dims=1)
    return (samples - truth).abs().mean(dim=0) - between / (number * (number - 1))


def energy_score(samples: Tensor, truth: Tensor) -> Tensor:
    """The energy score of a picture, smaller is better: the CRPS with Euclidean distances; 0-d.

    It is divided by the square root of the number of values: a constant error of 0.1 counts 0.1.

    Args:
        samples: (K, \\*S), K of at least 2.
        truth: (\\*S).

    Raises:
        ValueError: fewer than 2 samples.

    Source: Gneiting and Raftery, 2007, section 4.3.

    Example:
        >>> energy_score(torch.full((2, 3, 4, 4), 0.6), torch.full((3, 4, 4), 0.5))
        tensor(0.1000)
    """
    number = _checked(samples)
    flat, target = samples.flatten(1), truth.flatten()
    away = (flat - target).norm(dim=1).mean()
    between = torch.pdist(flat).sum() / (number * (number - 1))
    return (away - between) / target.numel() ** 0.5


def _checked(samples: Tensor) -> int:
    if len(samples) < 2:
        raise ValueError(f"samples must be at least 2 of a picture, got {len(samples)}.")
    return len(samples)
