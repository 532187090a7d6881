"""The default conditioner, in two parts: what depends on the context alone, and the rest.

The first layer of a coupling's conditioner reads ``[z1, context]``. A convolution of a
concatenation is a sum of convolutions, and the context's term does not change while z does: it
is computed once for all of a level's steps (one wide convolution) and for all samples of one
condition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Conditioner(nn.Module):
    """Two hidden layers from ``[z1, context]``, or from the context alone, to parameters.

    The last layer starts at zero, so a transform starts at its all-zero parameters (the
    identity, for the modified RQ spline).

    Args:
        z_channels: channels of ``z1``; 0 for a conditioner that reads the context alone.
        context_channels: channels of the context.
        out_channels: channels of the parameters, ``channels * transform.num_params``.
        hidden_channels: width of the hidden layers.
        spatial_dims: 0 for (N, D) tensors, which linear layers read; 1, 2 or 3 for
            (N, C, \\*S) tensors, which convolutions read.
        kernel_size: of the first convolution; odd. The second is 1 wide.
        head_kernel_size: of the last convolution; odd. None: as the first.

    Raises:
        ValueError: an even kernel, or spatial_dims outside 0 to 3.

    Shapes: context (N or 1, context_channels, \\*S), z1 (N, z_channels, \\*S), result
    (N or 1, out_channels, \\*S).

    Example:
        >>> conditioner = Conditioner(6, 16, 24)
        >>> z1, context = torch.randn(5, 6, 8, 8), torch.randn(1, 16, 8, 8)
        >>> projected = conditioner.project(context)      # once
        >>> conditioner(z1, projected).shape              # for each z1
        torch.Size([5, 24, 8, 8])
    """

    def __init__(
        self,
        z_channels: int,
        context_channels: int,
        out_channels: int,
        *,
        hidden_channels: int = 64,
        spatial_dims: int = 2,
        kernel_size: int = 3,
        head_kernel_size: int | None = None,
    ) -> None:
        super().__init__()
        self.context_layer = _layer(spatial_dims, context_channels, hidden_channels, kernel_size)
        self.z_layer = (
            _layer(spatial_dims, z_channels, hidden_channels, kernel_size, bias=False)
            if z_channels > 0
            else None
        )
        head_kernel_size = kernel_size if head_kernel_size is None else head_kernel_size
        head = _layer(spatial_dims, hidden_channels, out_channels, head_kernel_size)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        self.trunk = nn.Sequential(
            nn.ReLU(), _layer(spatial_dims, hidden_channels, hidden_channels, 1), nn.ReLU(), head
        )

    @property
    def can_join(self) -> bool:
        """Whether :func:`project_together` does what ``project`` does: not if that is replaced."""
        return type(self).project is Conditioner.project

    def project(self, context: Tensor) -> Tensor:
        """All that the context alone decides: the parameters themselves where z is not read."""
        return self.finish_projection(self.context_layer(context))

    def finish_projection(self, hidden: Tensor) -> Tensor:
        """:meth:`project`, from the output of ``context_layer``."""
        return hidden if self.z_layer is not None else self.trunk(hidden)

    def forward(self, z1: Tensor, projected: Tensor) -> Tensor:
        """The parameters; ``projected`` is what :meth:`project` returned, for all of z1 or 1."""
        if self.z_layer is None:
            return projected
        return self.trunk(self.z_layer(z1) + projected)


def project_together(conditioners: Sequence[Conditioner], context: Tensor) -> list[Tensor]:
    """``[c.project(context) for c in conditioners]``, their first layers as one wide layer.

    Sixteen steps of an injector and a coupling cost one convolution instead of 32. Equal to the
    plain calls to rounding, gradients included.

    Args:
        conditioners: with ``context_layer`` of one kind and kernel size.
        context: (N, context_channels, \\*S).

    Returns:
        The projections, in order.
    """
    layers = [conditioner.context_layer for conditioner in conditioners]
    wide = {
        name: torch.cat([layer.get_parameter(name) for layer in layers])
        for name in ("weight", "bias")
    }
    hidden = functional_call(layers[0], wide, (context,))
    widths = [layer.weight.shape[0] for layer in layers]
    return [
        conditioner.finish_projection(part)
        for conditioner, part in zip(conditioners, hidden.split(widths, dim=1), strict=True)
    ]


def _layer(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True
) -> Layer:
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel sizes must be odd to keep the picture's size, got {kernel_size}.")
    if spatial_dims == 0:
        return nn.Linear(in_channels, out_channels, bias=bias)
    if not 1 <= spatial_dims <= len(_CONVOLUTIONS):
        raise ValueError(f"spatial_dims must be 0, 1, 2 or 3, got {spatial_dims}.")
    convolution = _CONVOLUTIONS[spatial_dims - 1]
    return convolution(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
