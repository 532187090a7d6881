"""Precision: what is computed in float32 at least, whatever z is in."""

from __future__ import annotations

import torch
from torch import Tensor


def float32_at_least(tensor: Tensor) -> Tensor:
    """The tensor in its own precision, or in float32 where that is half."""
    return tensor.to(wide_dtype(tensor.dtype))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and log-determinants of values of this one."""
    return torch.promote_types(dtype, torch.float32)
