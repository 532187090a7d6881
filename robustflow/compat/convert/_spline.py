"""What an affine transform becomes: a constant scale and shift, then the modified RQ spline."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robustflow import functional as F
from robustflow.nn.elementwise import ModifiedRQSpline


class RescaledModifiedRQSpline(nn.Module):
    """``z = RQ(x * exp(log_scale) + shift)``, RQ the modified RQ spline, a box for each channel.

    The modified RQ spline has slope 1 outside its box and cannot rescale data. The scale and the
    shift here do. They are trainable: one of each for each channel, the same for every condition.
    So the inverse moves a value by less than the box, apart from the spline's own shift, and
    multiplies it by the constant ``exp(-log_scale)``.

    The spline of box [low, high] is that of [-1, 1] between two constant affine maps, whose
    log-determinants cancel. So channels with different boxes share one call.

    Args:
        log_scale, shift: (C,), initial values.
        low, high: (C,), the box after scale and shift; low < high.
        inverted: the layer's forward direction runs from latents to data.
        channel_dim: the dimension of x that holds the channels, 1 or -1.

    Called as a :class:`robustflow.nn.ElementwiseTransform`: x (N, C, \\*S) and params
    (N or 1, C * 4, \\*S), or (N, C, \\*S, 4). With ``channel_dim=-1`` x is (\\*, C), params
    (\\*, C, 4), and ``reduce`` must be "none".

    Example:
        >>> low, high = torch.full((3,), -3.0), torch.full((3,), 3.0)
        >>> spline = RescaledModifiedRQSpline(torch.full((3,), 2.0), torch.zeros(3), low, high)
        >>> x, params = torch.randn(8, 3), torch.zeros(8, 12)
        >>> z, logabsdet = spline(x, params)
        >>> torch.testing.assert_close(logabsdet, torch.full((8,), 6.0))
    """

    interval: ClassVar[tuple[float, float]] = (-1.0, 1.0)  # of the spline between the two maps
    num_params: ClassVar[int] = ModifiedRQSpline.num_params
    identity_params: ClassVar[tuple[float, ...]] = ModifiedRQSpline.identity_params
    centre: Tensor
    half_width: Tensor

    def __init__(
        self,
        log_scale: Tensor,
        shift: Tensor,
        low: Tensor,
        high: Tensor,
        *,
        inverted: bool = False,
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(log_scale.detach().clone())
        self.shift = nn.Parameter(shift.detach().clone())
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("half_width", (high - low) / 2)
        self.inverted = inverted
        self.channel_dim = channel_dim

    def forward(
        self,
        x: Tensor,
        params: Tensor,
        *,
        inverse: bool = False,
        reduce: Literal["sum", "none"] = "sum",
    ) -> tuple[Tensor, Tensor]:
        """x and params -> (y, logabsdet), (N,), or like x with ``reduce="none"``."""
        to_latents = inverse == self.inverted
        log_scale = self._per_channel(self.log_scale, x)
        shift = self._per_channel(self.shift, x)
        centre, half_width = (self._per_channel(each, x) for each in (self.centre, self.half_width))
        if to_latents:
            x = x * torch.exp(log_scale) + shift
        y, logabsdet = F.modified_rq_spline(
            (x - centre) / half_width,
            params,
            inverse=not to_latents,
            interval=self.interval,
            derivative="softclip",
            reduce=reduce,
        )
        y = y * half_width + centre
        if not to_latents:
            y = (y - shift) * torch.exp(-log_scale)
            log_scale = -log_scale
        if reduce == "sum":
            elements = x[0].numel() // max(1, x.shape[1])
            log_scale = log_scale.sum(dtype=logabsdet.dtype) * elements
        return y, logabsdet + log_scale

    def _per_channel(self, constant: Tensor, x: Tensor) -> Tensor:
        """A constant in x's dtype, to broadcast against x."""
        constant = constant.to(x.dtype)
        return constant if self.channel_dim == -1 else constant.view(-1, *[1] * (x.dim() - 2))

    def extra_repr(self) -> str:
        inverted = ", inverted=True" if self.inverted else ""
        return f"channels={self.log_scale.numel()}{inverted}"


def joined(shape: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    """Parameters from two networks: three a channel and one a channel -> (N, C * 4, \\*S).

    Args:
        shape: (N, C * 3, \\*S), width, height and derivative.
        shift: (N, C, \\*S).
        x: (N, C, \\*S), what is transformed.
    """
    channels = x.shape[1]
    parts = [shape.unflatten(1, (channels, -1)), shift.unsqueeze(2)]
    return torch.cat(parts, dim=2).flatten(1, 2)
