"""The field's diversity score of samples of one picture."""

from __future__ import annotations

import math

from torch import Tensor


def diversity(distances: Tensor) -> float:
    """100 (G - L) / G, where G is the best sample's distance and L that of the best of each pixel.

    0 for equal samples; larger is better.

    Args:
        distances: of K samples from the truth, (K, H, W), at least 0.

    Returns:
        NaN where a sample equals the truth.

    Source: the NTIRE 2021 challenge on learning the super-resolution space (Lugmayr et al., CVPR
    workshops 2021), with distances by LPIPS.

    Example:
        >>> import torch
        >>> diversity(torch.tensor([[[1.0, 3.0]], [[3.0, 1.0]]]))
        50.0
    """
    best = float(distances.flatten(1).mean(dim=1).min())
    local = float(distances.amin(dim=0).mean())
    return 100 * (best - local) / best if best > 0 else math.nan


def pixel_distances(samples: Tensor, truth: Tensor) -> Tensor:
    """|x - truth|, mean over channels: (K, C, H, W) and (1, C, H, W) to (K, H, W)."""
    return (samples - truth).abs().mean(dim=1)
