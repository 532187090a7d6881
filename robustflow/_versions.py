"""How often tensors were written to, for what is kept of them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """The count of in-place writes of each; 0 for inference tensors, of which torch keeps none."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]
