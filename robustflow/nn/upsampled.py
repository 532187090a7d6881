"""Convolve bilinearly enlarged features without enlarging them first.

Resizing mixes positions, and the weights W_t of a convolution's tap t mix channels. So they
commute:

    conv(resize(f)) = sum over taps t of shift_t(resize(W_t f))

The right-hand side multiplies by the weights at the small size: for twice the side, a quarter of
the work. Resizing and shifting together are a product with one small matrix along each side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow._backend import is_onnx_export
from robustflow._checks import check_tensor, describe

if TYPE_CHECKING:
    from typing import TypeGuard

# With a smaller ratio of areas, convolving the enlarged features was as fast.
_MIN_AREA_RATIO = 2


@dataclass(frozen=True)
class Upsampled:
    """A context of a flow: features that are enlarged bilinearly, and further channels.

    It stands for the tensor that :meth:`tensor` returns. On CPUs, default conditioners do not
    compute that tensor: they project the features at their own size, with the same result to
    rounding. All other layers get the tensor.

    Args:
        features: (N, C, h, w).
        size: (H, W), the size to enlarge them to; at least (h, w).
        beside: (N, C', H, W), channels to append to the enlarged features; or None.

    Raises:
        TypeError: ``features`` or ``beside`` is no tensor, or ``size`` is not two numbers.
        ValueError: shapes do not fit, or ``size`` has a fraction.

    Example:
        >>> from robustflow.nn import ConditionalFlow, ModifiedRQSpline, Squeeze, flow_step
        >>> flow = ConditionalFlow([[Squeeze(2), *flow_step(12, 16, ModifiedRQSpline())]])
        >>> context = Upsampled(torch.randn(4, 16, 4, 4), (8, 8))
        >>> flow.log_prob(torch.randn(4, 3, 16, 16), context).shape
        torch.Size([4])
    """

    features: Tensor
    size: tuple[int, int]
    beside: Tensor | None = None

    def __post_init__(self) -> None:
        check_tensor("features", self.features)
        _check_size(self.size)
        shape, (height, width) = self.features.shape, self.size
        if len(shape) != 4 or shape[2] > height or shape[3] > width:
            raise ValueError(
                "features must have shape (N, C, h, w) and size must be (H, W), at least (h, w): "
                f"got {tuple(shape)} and {self.size}."
            )
        if self.beside is None:
            return
        check_tensor("beside", self.beside)
        further = self.beside.shape
        if len(further) != 4 or further[0] != shape[0] or further[2:] != (height, width):
            raise ValueError(
                f"beside must have shape ({shape[0]}, C', {height}, {width}), as features and size "
                f"say, got {tuple(further)}."
            )

    @property
    def shape(self) -> torch.Size:
        """The shape of :meth:`tensor`."""
        channels = self.features.shape[1] + (0 if self.beside is None else self.beside.shape[1])
        return torch.Size((self.features.shape[0], channels, *self.size))

    def tensor(self) -> Tensor:
        """The enlarged features followed by the further channels, (N, C + C', H, W)."""
        enlarged = functional.interpolate(self.features, list(self.size), mode="bilinear")
        return enlarged if self.beside is None else torch.cat([enlarged, self.beside], dim=1)


def _check_size(size: object) -> None:
    """Two whole numbers; symbolic ones and tensors, which torch makes of sizes in a trace, too."""
    if isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2:
        kinds = (Integral, torch.SymInt, Tensor)
        if all(isinstance(side, kinds) and not isinstance(side, bool) for side in size):
            return
        raise ValueError(f"size must be two whole numbers (H, W), got {size!r}.")
    what = repr(size) if isinstance(size, Sequence) else describe(size)
    raise TypeError(f"size must be two numbers (H, W): write (16, 16), not 16; got {what}.")


def can_stay_small(layer: nn.Module, context: Upsampled) -> TypeGuard[nn.Conv2d]:
    """Whether :func:`convolve_upsampled` can replace this layer and is faster.

    False on GPUs, where it was not measured, and under autocast, which would round products before
    they are summed. Also False if the context does not fit the layer: the usual path raises the
    error.
    """
    tensors = [context.features, *([] if context.beside is None else [context.beside])]
    return (
        isinstance(layer, nn.Conv2d)
        and layer.in_channels == context.shape[1]
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.padding == tuple(side // 2 for side in layer.kernel_size)
        and all(side % 2 for side in layer.kernel_size)
        and layer.weight.dtype in (torch.float32, torch.float64)
        and all(tensor.dtype == layer.weight.dtype for tensor in tensors)
        and all(tensor.device.type == "cpu" for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not is_onnx_export()
        and math.prod(context.size) >= _MIN_AREA_RATIO * math.prod(context.features.shape[2:])
    )


def convolve_upsampled(context: Upsampled, layers: Sequence[nn.Conv2d]) -> list[Tensor]:
    """The same as ``[layer(context.tensor()) for layer in layers]``, to rounding.

    :func:`can_stay_small` holds for all layers, and they have the same kernel size.
    """
    features, (height, width) = context.features, context.size
    batch, channels, *small_size = features.shape
    kernel = layers[0].kernel_size
    rows, columns = (
        _shifted_resizes(small, large, taps, features)
        for small, large, taps in zip(small_size, context.size, kernel, strict=True)
    )
    flat = features.flatten(2)
    results = []
    for layer in layers:  # one by one, so that intermediate results stay in the cache
        taps = layer.weight[:, :channels].permute(0, 2, 3, 1).reshape(-1, channels)
        products = (taps @ flat).view(batch, layer.out_channels, *kernel, *small_size)
        products = products.transpose(3, 4).reshape(
            batch * layer.out_channels, rows.shape[0], columns.shape[0]
        )
        hidden = (rows.T @ products @ columns).view(batch, layer.out_channels, height, width)
        if context.beside is None:
            assert layer.bias is not None
            hidden = hidden + layer.bias.view(-1, 1, 1)
        else:
            hidden = hidden + functional.conv2d(
                context.beside, layer.weight[:, channels:], layer.bias, padding=layer.padding
            )
        results.append(hidden)
    return results


def _shifted_resizes(small: int, large: int, taps: int, like: Tensor) -> Tensor:
    """A matrix (taps * small, large): for each tap, resizes along one side, then shifts."""
    identity = torch.eye(small, dtype=like.dtype, device=like.device)
    resize = functional.interpolate(identity[None], large, mode="linear")[0]
    padded = functional.pad(resize, (taps // 2, taps // 2))
    return torch.cat([padded[:, tap : tap + large] for tap in range(taps)])
