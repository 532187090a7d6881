"""The splines with moved knots: how far rounding of a knot moves the result.

Bin sizes are computed here, independently of the package; the reference then evaluates the spline
through ready-made knots.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustflow import reference

Edge = Tensor | float
LOGIT_LIMIT = 40.0  # exp and sigmoid saturate here


def softmax_sizes(logits: Tensor, min_bin: float) -> Tensor:
    """Fractions of the box (*S, K), each at least min_bin."""
    num_bins = logits.shape[-1]
    return min_bin + (1.0 - num_bins * min_bin) * torch.softmax(logits, dim=-1)


def softclip(logits: Tensor, limit: float) -> Tensor:
    return logits / (1.0 + (logits / limit).abs())


def move_knots(sizes: Tensor, distance: Edge, pattern: Tensor) -> Tensor:
    """Sizes (*S, M, K) after the inner knots moved, M ways at once.

    pattern (M, 2): every knot moves ``distance`` times the first number, and ``distance`` times the
    second to the right and to the left in turn. The one shifts a bin, the other widens it.
    """
    num_inner = sizes.shape[-1] - 1
    turns = torch.ones(num_inner, dtype=sizes.dtype, device=sizes.device)
    turns[1::2] = -1.0
    moved = (pattern[:, :1] + pattern[:, 1:] * turns) * distance
    return sizes + torch.nn.functional.pad(moved, (1, 1)).diff(dim=-1)


def through_knots(
    x: Tensor,
    sizes: tuple[Tensor, Tensor],
    derivatives: Tensor,
    box: Tensor,
    tails: str | None,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """The spline with bins of the given widths and heights (*S, K); box (..., 4)."""
    widths, heights = sizes
    return reference.rq(
        x,
        widths,
        heights,
        derivatives,
        box,
        widths.shape[-1],
        inverse,
        tails,
        "knots",
        *(0.0, 1.0, 0.0, 1.0),
        *(1e-3, 1e-3, 1e-3, 1.0),
        x.dim(),
    )


def softplus(logits: Tensor) -> Tensor:
    return torch.nn.functional.softplus(logits, threshold=60.0)


def log_slope(min_derivative: float) -> float:
    return -math.log(min_derivative)
