"""Counts of writes to tensors, to tell whether a cached result is still valid.

Nothing else in the package reads ``Tensor._version``, PyTorch's private name for them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """The count of writes to each; 0 for inference tensors, whose writes torch does not count."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def are_counted(tensors: Iterable[Tensor]) -> bool:
    """Whether torch counts the writes to all of them, so that their versions mean something."""
    return not any(tensor.is_inference() for tensor in tensors)


class Unchanged:
    """Recognises a tensor as long as nothing is written to it; holds it weakly."""

    __slots__ = ("_version", "reference")

    def __init__(self, tensor: Tensor) -> None:
        self.reference = weakref.ref(tensor)
        self._version = None if tensor.is_inference() else tensor._version

    def holds(self, tensor: Tensor) -> bool:
        """Whether it is this tensor, without a write since; False for inference tensors."""
        return (
            self.reference() is tensor
            and self._version is not None
            and self._version == tensor._version
        )
