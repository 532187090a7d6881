"""Conditioners in two parts: one that depends on the context alone, and the rest.

The first layer of a coupling's conditioner reads ``[z1, context]``. A convolution of a
concatenation is a sum of convolutions, and the context's term does not depend on z. So it is
computed once for all samples of one condition, and for all steps of a level in one wide
convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow._checks import describe
from robustflow.nn._checks import (
    check_context_fits,
    check_counts,
    check_dtype,
    check_module,
    check_shape,
)
from robustflow.nn.circle import PeriodicFeatures
from robustflow.nn.elementwise import ElementwiseTransform
from robustflow.nn.upsampled import Upsampled, can_stay_small, convolve_upsampled

if TYPE_CHECKING:
    from typing_extensions import Unpack

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class TwoPartConditioner(nn.Module):
    """Two hidden layers, the first a sum of one that reads z1 and one that reads the context.

    The last layer starts with zero weights and the given bias, so that a transform starts at those
    parameters.

    Args:
        context_layer: None for a conditioner without context.
        z_layer: None for a conditioner that reads the context alone.
        hidden_layer: between the hidden layers.
        head: to the parameters.
        initial_params: the bias of ``head`` at the start, repeated over its channels.
        z_features: what ``z_layer`` reads in place of z1; None for z1 itself.
    """

    def __init__(
        self,
        context_layer: Layer | None,
        z_layer: Layer | None,
        hidden_layer: Layer,
        head: Layer,
        initial_params: Sequence[float],
        z_features: PeriodicFeatures | None = None,
    ) -> None:
        super().__init__()
        self.z_features = z_features
        self.context_layer = context_layer
        self.z_layer = z_layer
        assert head.bias is not None
        with torch.no_grad():
            head.weight.zero_()
            start = torch.as_tensor(initial_params, dtype=head.bias.dtype, device=head.bias.device)
            head.bias.view(-1, len(start)).copy_(start)
        self.trunk = nn.Sequential(nn.ReLU(), hidden_layer, nn.ReLU(), head)

    @property
    def can_join(self) -> bool:
        """Whether :func:`project_together` does what ``project`` does.

        False if a subclass overrides ``project``, or if the context's layer has a hook, a
        parametrisation or an adapter.
        """
        layer = self.context_layer
        return (
            layer is not None
            and type(self).project is TwoPartConditioner.project
            and type(self).finish_projection is TwoPartConditioner.finish_projection
            and type(layer) in (nn.Linear, *_CONVOLUTIONS)
            and [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
            and not layer._forward_hooks
            and not layer._forward_pre_hooks
        )

    def project(self, context: Tensor) -> Tensor:
        """All that the context alone decides: the parameters themselves where z is not read."""
        if self.context_layer is None:
            raise ValueError("This conditioner was built without context: it has no part for one.")
        _check_input("The context", context, self.context_layer)
        return self.finish_projection(self.context_layer(context))

    def finish_projection(self, hidden: Tensor) -> Tensor:
        """:meth:`project`, from the output of ``context_layer``."""
        return hidden if self.z_layer is not None else self.trunk(hidden)

    def forward(self, z1: Tensor, projected: Tensor | None = None) -> Tensor:
        """The parameters; ``projected`` is what :meth:`project` returned, for all of z1 or 1."""
        if (projected is None) != (self.context_layer is None):
            raise ValueError(
                "A conditioner is called with what its project(context) returned: got "
                f"{'none' if projected is None else 'one'} where it has "
                f"{self.context_layer} for the context."
            )
        if self.z_layer is None:
            assert projected is not None
            return projected
        if self.z_features is not None:
            z1 = self.z_features(z1)
        _check_input("The part of z that a conditioner reads", z1, self.z_layer)
        hidden = self.z_layer(z1)
        if projected is not None:
            check_context_fits(projected, z1)
            hidden = hidden + projected
        return self.trunk(hidden)


class ConditionerOptions(TypedDict, total=False):
    """Types of the options of :class:`Conditioner` that layers pass on."""

    hidden_channels: int
    spatial_dims: int
    kernel_size: int
    head_kernel_size: int | None
    circles: Sequence[float | None]
    num_frequencies: int


class Conditioner(TwoPartConditioner):
    """The default: from ``[z1, context]``, or from either alone, to parameters.

    Args:
        z_channels: channels of ``z1``; 0 for a conditioner that reads the context alone.
        context_channels: channels of the context; 0 for a conditioner without one.
        out_channels: channels of the parameters, ``channels * transform.num_params``.
        hidden_channels: width of the hidden layers.
        spatial_dims: 0 for (N, D) tensors, which linear layers read; 1, 2 or 3 for
            (N, C, \\*S) tensors, which convolutions read.
        kernel_size: of the first convolution; odd. The second is 1 wide.
        head_kernel_size: of the last convolution; odd. None: as the first.
        initial_params: parameters of an element at the start, whatever z and the context:
            a transform's ``identity_params``.
        circles: for each channel of ``z1`` half the length of the circle that it is on, or None;
            None for no circles. Channels on circles are read as :class:`PeriodicFeatures`.
        num_frequencies: of these features.

    Raises:
        TypeError, ValueError: no whole numbers of channels, an even kernel, spatial_dims outside
            0 to 3, or nothing to read.

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
        initial_params: Sequence[float] = (0.0,),
        circles: Sequence[float | None] | None = None,
        num_frequencies: int = 1,
    ) -> None:
        check_counts(0, z_channels=z_channels, context_channels=context_channels)
        check_counts(out_channels=out_channels, hidden_channels=hidden_channels)
        if z_channels < 1 and context_channels < 1:
            raise ValueError(
                "A conditioner needs something to read: context_channels of at least 1, or "
                "channels of z."
            )
        context_layer = (
            _layer(spatial_dims, context_channels, hidden_channels, kernel_size)
            if context_channels > 0
            else None
        )
        z_features = periodic_features(z_channels, circles, num_frequencies)
        read = z_channels if z_features is None else z_features.out_channels
        z_layer = (
            _layer(spatial_dims, read, hidden_channels, kernel_size, bias=context_layer is None)
            if z_channels > 0
            else None
        )
        head_kernel_size = kernel_size if head_kernel_size is None else head_kernel_size
        head = _layer(spatial_dims, hidden_channels, out_channels, head_kernel_size)
        hidden_layer = _layer(spatial_dims, hidden_channels, hidden_channels, 1)
        super().__init__(context_layer, z_layer, hidden_layer, head, initial_params, z_features)


def periodic_features(
    channels: int, circles: Sequence[float | None] | None, num_frequencies: int
) -> PeriodicFeatures | None:
    """What a conditioner reads of channels of which some are on circles; None where none is.

    Raises:
        TypeError, ValueError: a number of frequencies out of range, or given without a circle.
    """
    check_counts(num_frequencies=num_frequencies)
    if circles is not None and any(bound is not None for bound in circles):
        return PeriodicFeatures(channels, bound=circles, num_frequencies=num_frequencies)
    if channels > 0 and num_frequencies > 1:
        raise ValueError(
            f"num_frequencies is of channels on circles, got {num_frequencies} where none is."
        )
    return None


def own_or_default(
    own: nn.Module | None,
    z_channels: int,
    context_channels: int,
    channels: int,
    transform: ElementwiseTransform,
    **options: Unpack[ConditionerOptions],
) -> nn.Module:
    """The user's conditioner of a transform of so many channels, or else the default.

    Raises:
        TypeError: no module.
    """
    if own is not None:
        check_module("conditioner", own)
        return own
    return Conditioner(
        z_channels,
        context_channels,
        channels * transform.num_params,
        initial_params=transform.identity_params,
        **options,
    )


def project_together(
    conditioners: Sequence[TwoPartConditioner], context: Tensor | Upsampled
) -> list[Tensor]:
    """``[c.project(context) for c in conditioners]``, their first layers as one wide layer.

    Sixteen steps of an injector and a coupling cost one convolution instead of 32. Equal to the
    plain calls to rounding, gradients included.

    Args:
        conditioners: that :attr:`~TwoPartConditioner.can_join`, with one :func:`join_key`.
        context: (N, context_channels, \\*S).

    Returns:
        The projections, in order.
    """
    layers = [_context_layer(conditioner) for conditioner in conditioners]
    return [
        conditioner.finish_projection(part)
        for conditioner, part in zip(conditioners, _apply_together(layers, context), strict=True)
    ]


def _apply_together(layers: Sequence[Layer], context: Tensor | Upsampled) -> Sequence[Tensor]:
    """``[layer(context) for layer in layers]``."""
    if isinstance(context, Upsampled):
        convolutions = [layer for layer in layers if can_stay_small(layer, context)]
        if len(convolutions) == len(layers):
            return convolve_upsampled(context, convolutions)
        context = context.tensor()
    _check_input("The context", context, layers[0])
    joined = {
        name: torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias")
    }
    widths = [len(layer.weight) for layer in layers]
    return _apply(layers[0], context, **joined).split(widths, dim=1)


def _apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer with other parameters; torch.func.functional_call refuses to be traced."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


def join_key(conditioner: TwoPartConditioner) -> tuple[object, ...]:
    """What the context's layers must have in common to become one wide layer."""
    layer = _context_layer(conditioner)
    how = ("stride", "padding", "dilation", "groups", "padding_mode")
    return (type(layer), *layer.weight.shape[1:], *(getattr(layer, name, None) for name in how))


def _context_layer(conditioner: TwoPartConditioner) -> Layer:
    layer = conditioner.context_layer
    assert layer is not None
    return layer


def _layer(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True
) -> Layer:
    check_counts(kernel_size=kernel_size)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel sizes must be odd to keep the picture's size, got {kernel_size}.")
    if spatial_dims not in range(1 + len(_CONVOLUTIONS)):
        raise ValueError(f"spatial_dims must be 0, 1, 2 or 3, got {describe(spatial_dims)}.")
    if spatial_dims == 0:
        return nn.Linear(in_channels, out_channels, bias=bias)
    convolution = _CONVOLUTIONS[spatial_dims - 1]
    return convolution(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)


def _check_input(name: str, tensor: Tensor, layer: Layer) -> None:
    spatial_dims = layer.weight.dim() - 2
    groups = layer.groups if isinstance(layer, _CONVOLUTIONS) else 1
    check_shape(name, tensor, layer.weight.shape[1] * groups, spatial_dims)
    check_dtype(name, tensor, layer.weight)
