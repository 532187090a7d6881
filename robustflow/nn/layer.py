"""The interface of a flow's layers, and the base class of the conditional ones.

A layer is a module with ``forward(z, context=None, *, inverse=False) -> (z, logabsdet (N,))``.
A conditional layer splits that call in two, so that a flow can do the first part once for many
calls: ``state = layer.project(context)`` and ``layer.transform_with(z, state, inverse=...)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from robustflow.nn._checks import check_batch_fits, check_shape
from robustflow.nn.elementwise import ElementwiseTransform


class ConditionalLayer(nn.Module, ABC):
    """A layer whose elementwise transform takes its parameters from a conditioner.

    Args:
        channels: channels of z.
        context_channels: channels of the context; 0 for a layer that takes none.
        transform: the elementwise transform.
        conditioner: a module that returns the parameters; each subclass says what it reads.
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        transform: ElementwiseTransform,
        conditioner: nn.Module,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.context_channels = context_channels
        self.transform = transform
        self.conditioner = conditioner

    def project(self, context: Tensor | None) -> Any:
        """What depends on the context alone; tensors of it have the context's batch size.

        The context's part of the conditioner, or the context itself where the conditioner has no
        method ``project``; None with ``context_channels=0``.

        Raises:
            ValueError: a context is missing, has other channels, or is given where
                ``context_channels`` is 0.
        """
        if self.context_channels == 0:
            if context is not None:
                raise ValueError(
                    f"This {type(self).__name__} takes no context: leave it out, or build the "
                    f"layer with context_channels={context.shape[1] if context.dim() > 1 else 1}."
                )
            return None
        if context is None:
            raise ValueError(
                f"This {type(self).__name__} needs a context of {self.context_channels} channels: "
                "pass one, or build it with context_channels=0."
            )
        check_shape("The context", context, self.context_channels)
        project = getattr(self.conditioner, "project", None)
        return context if project is None else project(context)

    @abstractmethod
    def transform_with(
        self, z: Tensor, state: Any, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Transform z given :meth:`project`'s result, of z's batch size or 1."""

    def forward(
        self, z: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """z (N, channels, \\*S), context (N or 1, context_channels, \\*S) -> z, logabsdet (N,)."""
        return self.transform_with(z, self.project(context), inverse=inverse)

    def params_of(self, z1: Tensor, state: Any) -> Tensor:
        """Call the conditioner on what it reads of z, and on the projected context."""
        if self.context_channels == 0:
            return self.conditioner(z1)
        if isinstance(state, Tensor) and not hasattr(self.conditioner, "project"):
            # It may concatenate z1 and the context, which takes equal batch sizes.
            check_batch_fits("The context", state.shape[0], z1.shape[0])
            state = state.expand(z1.shape[0], *state.shape[1:])
        return self.conditioner(z1, state)

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, context_channels={self.context_channels}, "
            f"transform={self.transform}"
        )
