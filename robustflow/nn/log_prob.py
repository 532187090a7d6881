"""log_prob as a module's forward, for wrappers that act on ``forward`` alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from robustflow.nn._checks import check_module


class LogProb(nn.Module):
    """``LogProb(flow)(x, context)`` is ``flow.log_prob(x, context)``.

    ``DistributedDataParallel`` and its relatives act on a module's forward alone. Wrap this, and
    train by what it returns; sample from the flow itself, whose weights it shares.

    Args:
        flow: a :class:`ConditionalFlow`, or another module with ``log_prob``.

    Raises:
        TypeError: no such module.

    Example:
        >>> import torch
        >>> from robustflow.nn import ConditionalFlow, RQSplineCoupling
        >>> flow = ConditionalFlow([[RQSplineCoupling(4, spatial_dims=0)]])
        >>> model = LogProb(flow)  # DistributedDataParallel(LogProb(flow)) in each process
        >>> loss = -model(torch.randn(8, 4)).mean()
    """

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        check_module("flow", flow)
        if not callable(getattr(flow, "log_prob", None)):
            raise TypeError(
                f"flow must have a method log_prob, and {type(flow).__name__} has none."
            )
        self.flow: Any = flow

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The arguments and the result are those of the flow's ``log_prob``."""
        density: Tensor = self.flow.log_prob(*args, **kwargs)
        return density
