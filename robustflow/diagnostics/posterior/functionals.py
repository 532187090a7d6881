"""Linear functionals of pictures, for rank tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_RANDOM = 4


def linear_functionals(shape: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
    """Weights w of functionals sum(w x) that see different scales and places.

    The mean; along each spatial dimension the first half minus the second; the finest
    checkerboard; and random normal weights. Each has norm 1.

    Args:
        shape: of a picture, (C, \\*S), or of a vector, (D,), which has no places.
        seed: of the random ones.

    Returns:
        By name, (\\*shape), float32.

    Example:
        >>> list(linear_functionals((3, 8, 8)))[:4]
        ['mean', 'halves of dimension 1', 'halves of dimension 2', 'checkerboard']
    """
    weights = {"mean": torch.ones(tuple(shape))}
    for dim in range(1, len(shape)):
        position = torch.arange(shape[dim])
        sign = torch.where(2 * position < shape[dim], 1.0, -1.0)
        view = [1] * len(shape)
        view[dim] = shape[dim]
        weights[f"halves of dimension {dim}"] = sign.view(view).expand(tuple(shape))
    if len(shape) > 1:
        places = torch.meshgrid(*(torch.arange(side) for side in shape[1:]), indexing="ij")
        parity = torch.stack(places).sum(dim=0) % 2
        weights["checkerboard"] = (1.0 - 2.0 * parity).expand(tuple(shape))
    generator = torch.Generator().manual_seed(seed)
    for number in range(1, _RANDOM + 1):
        weights[f"random {number}"] = torch.randn(math.prod(shape), generator=generator).view(
            tuple(shape)
        )
    return {name: weight / weight.norm() for name, weight in weights.items()}
