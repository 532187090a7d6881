"""A linear layer y = L U x + b, with triangular L and U, in one call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustflow import _native
from robustflow.ops.registry import reference_gradients


def run_lu_linear(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    diagonal: Tensor,
    bias: Tensor,
    inverse: bool,
    eps: float,
    permutation: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """The layer, or its inverse, in operations that autograd knows.

    Args:
        x: (N, D).
        lower, upper: the entries of L below its diagonal of ones, and of U above its diagonal, row
            by row, (D (D - 1) / 2,).
        diagonal: of U, before softplus, (D,).
        bias: (D,).
        inverse: whether to compute the inverse.
        eps: what is added to the diagonal of U.
        permutation: feature i of what U multiplies is feature ``permutation[i]`` of x; empty where
            the features stay in order.

    Returns:
        (y, logabsdet), (N, D) and (N,).
    """
    size, order = len(diagonal), list(permutation)
    ones = torch.eye(size, dtype=x.dtype, device=x.device)
    below, above = torch.tril_indices(size, size, -1), torch.triu_indices(size, size, 1)
    entries = functional.softplus(diagonal) + eps
    full_lower = ones.index_put((below[0], below[1]), lower)
    full_upper = torch.diag(entries).index_put((above[0], above[1]), upper)
    logabsdet = entries.log().sum().expand(len(x))
    if not inverse:
        y = functional.linear(x[:, order] if order else x, full_upper)
        return functional.linear(y, full_lower, bias), logabsdet
    y = torch.linalg.solve_triangular(full_lower, (x - bias).t(), upper=False, unitriangular=True)
    y = torch.linalg.solve_triangular(full_upper, y, upper=True).t()
    return y[:, sorted(range(size), key=order.__getitem__)] if order else y, -logabsdet


@functools.cache  # a graph may refer to it for as long as the process lives
def lu_linear() -> Any:
    """The layer of `robustflow._autograd`.

    ``layer(x, lower, upper, diagonal, bias, inverse, eps, permutation)`` returns what
    :func:`run_lu_linear` returns, or a clause that says why it does not serve the call. Here the
    permutation is an int64 tensor (D,), or None.
    """

    def gradients(
        tensors: Sequence[Tensor | None],
        inverse: bool,
        eps: float,
        permutation: Sequence[int],
        needed: Sequence[bool],
        cotangents: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        config = (inverse, eps, permutation)
        with torch.enable_grad():
            return reference_gradients(run_lu_linear, tensors, config, needed, cotangents)

    return _native.autograd().LULinear(gradients)


def has_lu_linear() -> bool:
    """Whether `robustflow._autograd` is loaded and has this layer."""
    return hasattr(_native.autograd(), "LULinear")
