"""Counts of writes to tensors, to tell whether a cached result is still valid."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """The count of in-place writes of each; 0 for inference tensors, of which torch keeps none."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]
