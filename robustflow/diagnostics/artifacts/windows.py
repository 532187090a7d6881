"""Weighted means in windows around every pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from robustflow._resizing import symmetric_pad


def window_mean(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of (C, \\*S) in windows around each pixel; the edges are mirrored.

    Args:
        x: (C, \\*S).
        weights: (2 r + 1,) along each dimension, multiplied; they sum to one.

    Example:
        >>> window_mean(torch.tensor([[0.0, 0.0, 3.0, 0.0]]), torch.ones(3) / 3)
        tensor([[0., 1., 1., 1.]])
    """
    padded = symmetric_pad(x.unsqueeze(0), len(weights) // 2).squeeze(0)
    for dim, length in enumerate(x.shape[1:], start=1):
        first, *others = weights.tolist()
        total = first * padded.narrow(dim, 0, length)
        for start, weight in enumerate(others, start=1):
            total.add_(padded.narrow(dim, start, length), alpha=weight)
        padded = total
    return padded


def gaussian(width: int, deviation: float) -> Tensor:
    """Weights of a Gaussian window, (width,), summing to one."""
    position = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    weights = torch.exp(-(position**2) / (2 * deviation**2))
    return weights / weights.sum()
