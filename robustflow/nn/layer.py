"""What every layer of a flow has in common, and what the conditional ones add.

A layer is a module with ``forward(z, context=None, *, inverse=False) -> (z, logabsdet (N,))``.
A conditional layer splits that call in two, so that a flow can do the first part once for many
calls: ``state = layer.project(context)`` and ``layer.transform_with(z, state, inverse=...)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from robustflow.nn.elementwise import ElementwiseTransform


class ConditionalLayer(nn.Module, ABC):
    """A layer whose elementwise transform takes its parameters from a conditioner.

    Args:
        channels: channels of z.
        transform: the elementwise transform.
        conditioner: a module that makes the parameters; each subclass says from what.
    """

    def __init__(
        self, channels: int, transform: ElementwiseTransform, conditioner: nn.Module
    ) -> None:
        super().__init__()
        self.channels = channels
        self.transform = transform
        self.conditioner = conditioner

    @abstractmethod
    def project(self, context: Tensor | None) -> Any:
        """What depends on the context alone; tensors of it have the context's batch size."""

    @abstractmethod
    def transform_with(
        self, z: Tensor, state: Any, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Transform z given :meth:`project`'s result, of z's batch size or 1."""

    def forward(
        self, z: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """z (N, channels, \\*S), context (N or 1, ...) -> (z, logabsdet (N,))."""
        return self.transform_with(z, self.project(context), inverse=inverse)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, transform={self.transform}"
