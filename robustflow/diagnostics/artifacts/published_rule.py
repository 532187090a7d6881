"""`range`: values that no picture has. The published rule for a faulty sample."""

from __future__ import annotations

import torch
from torch import Tensor

# Source: the test script of Hong, Park and Chun, ICCV 2023: before clamping to [0, 1].
LOWEST, HIGHEST = -0.5, 1.5


def faulty_pixels(samples: Tensor) -> Tensor:
    """Where samples with values in [0, 1], not yet clamped, break the rule; same shape, bool.

    Above 1.5, below -0.5, or not finite.

    Example:
        >>> faulty_pixels(torch.tensor([0.2, 1.5, 1.6, -0.6, torch.nan])).tolist()
        [False, False, True, True, True]
    """
    return ~((samples >= LOWEST) & (samples <= HIGHEST))  # NaN fails both comparisons


def count_faulty(samples: Tensor) -> int | None:
    """How many samples (N, C, H, W) break the rule; None for others, since it is for pictures.

    Example:
        >>> count_faulty(torch.tensor([0.5, 7.0]).view(2, 1, 1, 1)), count_faulty(torch.zeros(2, 3))
        (1, None)
    """
    if samples.dim() < 4:
        return None
    return int(faulty_pixels(samples).flatten(1).any(dim=1).sum())


def distance_from_grey(samples: Tensor) -> Tensor:
    """How far from 1/2: 1 at the rule's limits, infinite where not finite; same shape."""
    distance = (samples - (LOWEST + HIGHEST) / 2).abs()
    return torch.where(torch.isfinite(distance), distance, torch.inf)
