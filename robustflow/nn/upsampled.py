"""Features that a level reads at a larger size than their own, without enlarging them first.

Enlarging mixes positions and the channel products of a convolution mix channels, so they commute:

    conv(resize(f)) = sum over taps t of shift_t(resize(W_t f))

The right-hand side multiplies channels at the features' own size: a quarter of the work for twice
the side. Shifting and resizing together are one small matrix along each side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow._backend import is_onnx_export
from robustflow._checks import check_tensor

if TYPE_CHECKING:
    from typing import TypeGuard

# Below this ratio of areas the convolution of the enlarged features was as fast.
_LEAST_AREA_RATIO = 2


@dataclass(frozen=True)
class Upsampled:
    """A context of a flow: features to be read at a larger size, and channels beside them.

    The features are enlarged bilinearly. On CPUs, default conditioners project them at their own
    size, with the result of :meth:`tensor` to rounding. Other layers get :meth:`tensor`.

    Args:
        features: (N, C, h, w).
        size: (H, W), the size to read them at; at least (h, w).
        beside: (N, C', H, W), channels after those of the features; None for none.

    Raises:
        TypeError, ValueError: no tensors, or shapes that do not fit.

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
        given = self.features.shape
        fits = len(given) == 4 and len(self.size) == 2
        if not fits or given[2] > self.size[0] or given[3] > self.size[1]:
            raise ValueError(
                "features must have shape (N, C, h, w) and size must be (H, W), at least (h, w): "
                f"got {tuple(given)} and {self.size}."
            )
        if self.beside is None:
            return
        check_tensor("beside", self.beside)
        own = self.beside.shape
        if len(own) != 4 or own[0] != given[0] or tuple(own[2:]) != tuple(self.size):
            raise ValueError(
                f"beside must have shape ({given[0]}, C', {self.size[0]}, {self.size[1]}), as "
                f"features and size say, got {tuple(own)}."
            )

    @property
    def shape(self) -> torch.Size:
        """Of :meth:`tensor`."""
        channels = self.features.shape[1] + (0 if self.beside is None else self.beside.shape[1])
        return torch.Size((self.features.shape[0], channels, *self.size))

    def tensor(self) -> Tensor:
        """The features enlarged, with the channels beside them, (N, C + C', H, W)."""
        enlarged = functional.interpolate(self.features, list(self.size), mode="bilinear")
        return enlarged if self.beside is None else torch.cat([enlarged, self.beside], dim=1)


def can_stay_small(layer: nn.Module, context: Upsampled) -> TypeGuard[nn.Conv2d]:
    """Whether :func:`convolve_upsampled` is faster than this layer of :meth:`Upsampled.tensor`.

    Only on CPUs, where that was measured. Autocast would round products that are summed later. A
    layer that the context does not fit is left to :meth:`~Upsampled.tensor`, and so to the usual
    errors.
    """
    given = [context.features, *([] if context.beside is None else [context.beside])]
    return (
        isinstance(layer, nn.Conv2d)
        and layer.in_channels == context.shape[1]
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.padding == tuple(side // 2 for side in layer.kernel_size)
        and all(side % 2 for side in layer.kernel_size)
        and layer.weight.dtype in (torch.float32, torch.float64)
        and all(part.dtype == layer.weight.dtype for part in given)
        and all(part.device.type == "cpu" for part in given)
        and not torch.is_autocast_enabled("cpu")
        and not is_onnx_export()
        and math.prod(context.size) >= _LEAST_AREA_RATIO * math.prod(context.features.shape[2:])
    )


def convolve_upsampled(context: Upsampled, layers: Sequence[nn.Conv2d]) -> list[Tensor]:
    """``[layer(context.tensor()) for layer in layers]``; one kernel size, and can_stay_small."""
    features, (height, width) = context.features, context.size
    number, channels, *own = features.shape
    kernel = layers[0].kernel_size
    rows, columns = (
        _shifted_resizes(small, large, taps, features)
        for small, large, taps in zip(own, context.size, kernel, strict=True)
    )
    flat = features.flatten(2)
    results = []
    for layer in layers:  # one after another: what lies between stays in the caches
        taps = layer.weight[:, :channels].permute(0, 2, 3, 1).reshape(-1, channels)
        products = (taps @ flat).view(number, layer.out_channels, *kernel, *own)
        products = products.transpose(3, 4).reshape(
            number * layer.out_channels, rows.shape[0], columns.shape[0]
        )
        hidden = (rows.T @ products @ columns).view(number, layer.out_channels, height, width)
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
    """(taps * small, large): for each tap, resizing along one side and then the tap's shift."""
    identity = torch.eye(small, dtype=like.dtype, device=like.device)
    resize = functional.interpolate(identity[None], large, mode="linear")[0]
    padded = functional.pad(resize, (taps // 2, taps // 2))
    return torch.cat([padded[:, tap : tap + large] for tap in range(taps)])
