"""Gradient magnitude similarity deviation of pictures."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_CONSTANT = 170 / 255**2  # of the paper, for values in [0, 1]


def gmsd(pictures: Tensor, truth: Tensor) -> Tensor:
    """GMSD of greyscale pictures, (N,): 0 for equal ones, smaller is better.

    Both are averaged over 2 x 2 pixels; their Prewitt gradients' magnitudes g and h give
    s = (2 g h + c) / (g^2 + h^2 + c), and GMSD is the standard deviation of s over pixels.

    Args:
        pictures: (N, 1, H, W), values in [0, 1].
        truth: likewise.

    Source: Xue et al., 2014 (arXiv:1308.3052).

    Example:
        >>> gmsd(torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8)).shape
        torch.Size([2])
    """
    ours, theirs = _magnitude(pictures), _magnitude(truth)
    above = 2 * ours * theirs + _CONSTANT
    similarity = above / (ours.square() + theirs.square() + _CONSTANT)
    return similarity.flatten(1).std(dim=1, unbiased=False)


def _magnitude(x: Tensor) -> Tensor:
    small = functional.avg_pool2d(x, 2)
    prewitt = x.new_tensor([[1, 0, -1]] * 3) / 3
    kernels = torch.stack([prewitt, prewitt.T])[:, None]
    return functional.conv2d(small, kernels, padding=1).square().sum(dim=1).sqrt()
