"""What is kept of a transform's latest call, so that its log-determinant is computed once."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from robustflow._versions import versions


class Kept:
    """The log-determinant of one eager call, for as long as the caller holds both x and y.

    The pair is held by weak references and the log-determinant is freed with it, so no tensor or
    autograd graph lives longer than the caller needs it.

    Args:
        x, y: the pair, whichever of them was computed.
        inverse: that x was computed, from y.
        logabsdet: log \\|dy/dx\\|, or log \\|dx/dy\\| of an inverse.
        parameters: what the transform reads besides.
    """

    def __init__(
        self, x: Tensor, y: Tensor, inverse: bool, logabsdet: Tensor, parameters: Sequence[Tensor]
    ) -> None:
        record = weakref.ref(self)  # strong references would be a cycle

        def forget(_: object) -> None:
            kept = record()
            if kept is not None:
                kept._logabsdet = None

        self._logabsdet: Tensor | None = logabsdet
        self._x = weakref.ref(x, forget)
        self._y = weakref.ref(y, forget)
        self._inverse = inverse
        self._parameters = tuple(parameters)
        self._versions = versions((x, y, *parameters))

    def logabsdet(
        self, x: Tensor, y: Tensor, inverse: bool, parameters: Sequence[Tensor]
    ) -> Tensor | None:
        """The log-determinant in a direction, if it is still valid for these tensors."""
        kept = self._logabsdet
        if kept is None or not self.holds_for(x, y, parameters):
            return None
        return kept if inverse == self._inverse else -kept

    def holds_for(self, x: Tensor | None, y: Tensor | None, parameters: Sequence[Tensor]) -> bool:
        """Whether the call was on these tensors and would now give the same, graph included."""
        return (
            x is not None
            and y is not None
            and self._x() is x
            and self._y() is y
            and all(new is old for new, old in zip(parameters, self._parameters, strict=True))
            and self._versions == versions((x, y, *parameters))
            and _has_wanted_graph(x, y, self._inverse, parameters)
        )


class Traced:
    """The same for a call inside torch.compile, for the rest of the compiled region.

    Dynamo keeps what it traces alive. The log-determinant is held by a weak reference, so it and
    this record are gone when the compiled function returns, and never outlive the trace.
    """

    def __init__(self, x: Tensor, y: Tensor, inverse: bool, logabsdet: Tensor) -> None:
        self._x = weakref.ref(x)
        self._y = weakref.ref(y)
        self._inverse = inverse
        self._logabsdet = weakref.ref(logabsdet)

    def logabsdet(
        self, x: Tensor, y: Tensor, inverse: bool, parameters: Sequence[Tensor]
    ) -> Tensor | None:
        """As for ``Kept``, without versions, which a trace cannot read."""
        kept = self._logabsdet()
        if (
            kept is None
            or self._x() is not x
            or self._y() is not y
            or not _has_wanted_graph(x, y, self._inverse, parameters)
        ):
            return None
        return kept if inverse == self._inverse else -kept


def _has_wanted_graph(x: Tensor, y: Tensor, inverse: bool, parameters: Sequence[Tensor]) -> bool:
    """Whether the call recorded an autograd graph, or none is wanted now."""
    output, input = (x, y) if inverse else (y, x)
    if output.requires_grad or not torch.is_grad_enabled():
        return True
    return not any(tensor.requires_grad for tensor in (input, *parameters))
