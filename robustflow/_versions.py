"""Counts of writes to tensors, to tell whether a cached result is still valid.

Nothing else in the package reads ``Tensor._version``, PyTorch's private name for them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """The count of in-place writes of each; 0 for inference tensors, of which torch keeps none."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def are_counted(tensors: Iterable[Tensor]) -> bool:
    """Whether torch counts the writes to all of them, so that their versions mean something."""
    return not any(tensor.is_inference() for tensor in tensors)


class Unchanged:
    """A tensor, held weakly, and recognised as long as nothing was written to it."""

    __slots__ = ("_version", "reference")

    def __init__(self, tensor: Tensor) -> None:
        self.reference = weakref.ref(tensor)
        self._version = None if tensor.is_inference() else tensor._version

    def holds(self, tensor: Tensor) -> bool:
        """Whether it is this tensor, as it was; never of an inference tensor."""
        return (
            self.reference() is tensor
            and self._version is not None
            and self._version == tensor._version
        )
