"""Dequantize: data of whole levels, such as 8-bit pictures, as values between 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustflow._checks import check_count, check_interval, check_tensor
from robustflow.nn.precision import upcast_dtype, upcast_half


class Dequantize(nn.Module):
    """``(level + noise) / levels``, the noise uniform in (0, 1); the first layer of a flow.

    Its log-determinant is ``-log(levels)`` a value. So ``flow.log_prob(x)`` is, on average over
    the noise, at most the log-probability of the levels, in nats, and ``flow.bits_per_dim(x)`` at
    least the bits that they take. The noise is drawn in every call, from torch's generator.

    The inverse gives whole levels. Gradients, in both directions, are those of the scaling.

    Args:
        levels: number of levels, at least 2; 256 for 8 bits.
        interval: what the lowest and the highest level are in x: (0, levels - 1) by default,
            (0.0, 1.0) for pictures from torchvision's ``ToTensor``.

    Raises:
        TypeError, ValueError: no whole number of levels, or an interval that does not increase.

    In float32 up to 2**18 levels are told apart; half precision is too coarse for 256.

    Source: Theis et al., A note on the evaluation of generative models, 2016 (arXiv:1511.01844).

    Example:
        >>> from robustflow.nn import ConditionalFlow, ModifiedRQSpline, Squeeze, flow_step
        >>> step = flow_step(12, 0, ModifiedRQSpline())
        >>> flow = ConditionalFlow([[Dequantize(256), Squeeze(2), *step]])
        >>> pictures = torch.randint(256, (4, 3, 8, 8)).float()
        >>> flow.bits_per_dim(pictures).shape
        torch.Size([4])
        >>> samples = flow.sample(2, size=(8, 8))
        >>> bool(torch.equal(samples, samples.round()))
        True
    """

    context_channels: ClassVar[int] = 0

    def __init__(self, levels: int = 256, *, interval: Sequence[float] | None = None) -> None:
        super().__init__()
        check_count("levels", levels, 2)
        self.levels = levels
        self.interval = check_interval(
            "interval", (0, levels - 1) if interval is None else interval
        )

    def forward(
        self, z: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Levels (N, C, \\*S) to values in (0, 1), or back; the context is not used."""
        check_tensor("z", z)
        low, high = self.interval
        step = (high - low) / (self.levels - 1)
        precise = upcast_half(z)
        change = z.new_full(
            z.shape[:1],
            math.prod(z.shape[1:]) * math.log(self.levels),
            dtype=upcast_dtype(z.dtype),
        )
        if inverse:
            scaled = precise * self.levels
            level = _with_gradient_of(scaled.floor().clamp(0, self.levels - 1), scaled)
            return (level * step + low).to(z.dtype), change
        scaled = (precise - low) / step
        level = _with_gradient_of(scaled.round(), scaled)
        # Keeps values so far from whole numbers that rounding, here and in the inverse, does not
        # reach one.
        margin = 4 * torch.finfo(precise.dtype).eps * self.levels
        noise = margin + (1 - 2 * margin) * torch.rand_like(precise)
        return ((level + noise) / self.levels).to(z.dtype), -change

    def extra_repr(self) -> str:
        return f"{self.levels}, interval={self.interval}"


def _with_gradient_of(value: Tensor, smooth: Tensor) -> Tensor:
    """The rounded value, with the gradient of the value before rounding."""
    return value.detach() + (smooth - smooth.detach())
