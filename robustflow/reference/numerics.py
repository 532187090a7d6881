"""Shared by the reference transforms: dtypes, saturation, soft clipping, the log-det's sum."""

from __future__ import annotations

import torch
from torch import Tensor

LOGIT_LIMIT = 40.0
"""Logits of ``exp`` and ``sigmoid`` saturate here: float32 carries nothing useful past it."""

LINEAR_LIMIT = 2.0**60
"""Logits of ``softplus`` and of soft clipping saturate here: products of slopes stay finite."""


def compute_dtype(x: Tensor, *parameters: Tensor | None) -> torch.dtype:
    """float64 if ``x`` or any parameter is float64, float32 otherwise (half types included)."""
    tensors = [x, *(p for p in parameters if p is not None)]
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def saturate(logit: Tensor, low: float = -LOGIT_LIMIT, high: float = LOGIT_LIMIT) -> Tensor:
    """Clamp ``logit``; the gradient is zero strictly beyond the limits, and NaN stays NaN."""
    return torch.clamp(logit, low, high)


def softclip(logit: Tensor, limit: float) -> Tensor:
    """``logit / (1 + |logit| / limit)``: odd, slope 1 at zero, bounded by ``limit``."""
    logit = saturate(logit, -LINEAR_LIMIT, LINEAR_LIMIT)
    return logit / (1 + logit.abs() / limit)


def softplus(logit: Tensor) -> Tensor:
    """``log(1 + exp(logit))``, exact in float64 too (torch's default turns linear at 20)."""
    logit = torch.clamp(logit, max=LINEAR_LIMIT)
    return torch.nn.functional.softplus(logit, threshold=LOGIT_LIMIT)


def cumulative_sum(values: Tensor, *, from_end: bool = False) -> Tensor:
    """Sums of ``values`` (..., K) up to each along the last dimension, or from each on.

    torch.compile gets the additions one by one. The backward pass of ``cumsum`` flips, and where
    Inductor of torch 2.13 fuses that with the one of a softmax, on the CPU, gradients are wrong.
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        sums = list(values.unbind(-1))
        if from_end:
            sums.reverse()
        for k in range(1, len(sums)):
            sums[k] = sums[k - 1] + sums[k]
        if from_end:
            sums.reverse()
        return torch.stack(sums, -1)
    return values.flip(-1).cumsum(-1).flip(-1) if from_end else values.cumsum(-1)


def sum_from(logabsdet: Tensor, batch_dims: int) -> Tensor:
    """Sum all dimensions of ``logabsdet`` from ``batch_dims`` on: shape S[:batch_dims] is left."""
    if batch_dims == logabsdet.dim():
        return logabsdet
    return logabsdet.sum(dim=tuple(range(batch_dims, logabsdet.dim())))
