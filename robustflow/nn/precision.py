"""Sums of log-densities: in float32 at least, whatever z is in, and in a fixed order."""

from __future__ import annotations

import torch
from torch import Tensor


def upcast_half(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if it is in half precision."""
    return tensor.to(upcast_dtype(tensor.dtype))


def upcast_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and log-determinants, for values of this dtype: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def zero_logabsdet(z: Tensor) -> Tensor:
    """The log-determinant of a layer that changes no volume, (N,)."""
    return z.new_zeros(z.shape[0], dtype=upcast_dtype(z.dtype))


# Elements of one sum: so few that PyTorch does not share a single result out to threads.
_RUN = 1024


def sum_per_sample(tensor: Tensor) -> Tensor:
    """(N, \\*S) summed over all but the first dimension, (N,), in float32 at least.

    The order does not depend on the layout nor, on a CPU, on the batch size or the number of
    threads. (PyTorch cuts a long sum with a single result into as many parts as it has threads.)
    """
    sums = upcast_half(tensor)
    sums = sums.flatten(1) if sums.dim() > 1 else sums.unsqueeze(1)
    if sums.stride(1) != 1:  # another memory layout would be another order
        sums = sums.contiguous()
    while sums.shape[1] > _RUN:
        whole = sums.shape[1] // _RUN * _RUN
        runs = sums[:, :whole].unflatten(1, (-1, _RUN)).sum(dim=2)
        sums = torch.cat([runs, sums[:, whole:].sum(dim=1, keepdim=True)], dim=1)
    return sums.sum(dim=1)
