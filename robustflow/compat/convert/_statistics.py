"""What an affine transform did to a calibration batch, channel by channel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustflow.compat.convert._spline import RescaledModifiedRQSpline

Elementwise = Callable[..., Tensor]

_MOST_VALUES = 2**22  # values of a call that are kept for the quantiles
# The box: the central 99 % of the values, a fifth longer. For a normal density, +-3.1 deviations.
_COVERED, _LONGER = 0.99, 1.2


class Statistics:
    """Mean log-scale and shift, and the values' range, of one affine transform, a channel each.

    Args:
        channel_dim: of the tensors that it is given.

    Attributes:
        inverse: the direction that was seen first, and is the one from data to latents.
        obstacle: why the values rule out a replacement, or None.
    """

    def __init__(self, channel_dim: int) -> None:
        self.channel_dim = channel_dim
        self.inverse: bool | None = None
        self.obstacle: str | None = None
        self.channels = 0
        self._sums: list[Tensor] = []  # of count, log-scale and shift, (3, channels) a call
        self._values: list[Tensor] = []

    def add(
        self,
        x: Tensor,
        params: tuple[Tensor, ...],
        inverse: bool,
        elementwise: Elementwise,
        counted: Tensor | None,
    ) -> None:
        """Record one call.

        Args:
            x: what is transformed.
            params: the conditioner's.
            inverse: the direction of the call.
            elementwise: the library's own ``elementwise(x, *params) -> y``, in this direction.
            counted: mask of the elements that are transformed (broadcasts to x); None: all.
        """
        if self.inverse is None:
            self.inverse, self.channels = inverse, x.shape[self.channel_dim]
            if self.channels == 0:
                self.obstacle = "it transforms no channel"
        if inverse != self.inverse or self.obstacle is not None:
            return
        # Read scale and shift from the transform's own code, at x = 0 and 1, checked at -2. In
        # float64, because a small scale is the difference of two values near the shift.
        wide = [param.detach().double() for param in params]
        shift, there, elsewhere = (
            elementwise(torch.full_like(x, at, dtype=torch.float64), *wide)
            for at in (0.0, 1.0, -2.0)
        )
        scale = there - shift
        error = (elsewhere - shift + 2 * scale).abs() - 1e-6 * (shift.abs() + scale.abs())
        counted = torch.ones_like(x, dtype=torch.bool) if counted is None else counted.expand_as(x)
        columns = [self._columns(each) for each in (x.double(), scale, shift, error)]
        values, scale, shift, error = columns
        mask = self._columns(counted)
        if not all(bool(each.isfinite()[mask].all()) for each in columns):
            self.obstacle = "its input, scale or shift is not finite on the calibration batch"
        elif not bool((error <= 0)[mask].all()):
            self.obstacle = "it is not affine in its input"
        elif not bool((scale > 0)[mask].all()):
            self.obstacle = "its scale is not positive"
        else:
            log_scale = scale.log()
            counts = (torch.ones_like(shift), log_scale, shift)
            self._sums.append(
                torch.stack([torch.where(mask, each, 0.0).sum(dim=1) for each in counts])
            )
            most = max(1024, _MOST_VALUES // max(1, self.channels))
            if values.shape[1] > most:
                chosen = torch.linspace(0, values.shape[1] - 1, most, device=x.device).long()
                values, mask = values[:, chosen], mask[:, chosen]
            self._values.append(torch.where(mask, values, torch.nan))

    def spline(self, like: Tensor, *, rescaled: bool = True) -> RescaledModifiedRQSpline:
        """The spline that takes the transform's place; or one of scale 1 for the same values.

        Its constants have the dtype and the device of ``like``.
        """
        values = torch.cat(self._values, dim=1)
        log_scale = shift = values.new_zeros(self.channels)
        if rescaled:
            count, log_scale, shift = torch.stack(self._sums).sum(dim=0)
            log_scale, shift = log_scale / count.clamp(min=1), shift / count.clamp(min=1)
        low, high = (edge * log_scale.exp() + shift for edge in _central(values))
        centre, half_width = (low + high) / 2, _LONGER * (high - low) / 2
        # A channel that is constant in the batch has no range: it gets a small box, or one of 1.
        half_width = torch.maximum(half_width, 1e-3 * half_width.max())
        half_width = torch.where(half_width > 0, half_width, torch.ones_like(half_width))
        constants = (log_scale, shift, centre - half_width, centre + half_width)
        return RescaledModifiedRQSpline(
            *(each.to(like) for each in constants),
            inverted=bool(self.inverse),
            channel_dim=self.channel_dim,
        )

    def _columns(self, x: Tensor) -> Tensor:
        """(channels, everything else)."""
        return x.detach().movedim(self.channel_dim, 0).flatten(1)


def _central(values: Tensor) -> tuple[Tensor, Tensor]:
    """The edges of the central part of each row, without NaN; 0 if nothing is left."""
    ordered = values.sort(dim=1).values  # NaN last; torch.quantile takes 2**24 values at most
    last = (ordered.isfinite().sum(dim=1, keepdim=True) - 1).clamp(min=0)
    outside = (1 - _COVERED) / 2
    edges = []
    for part in (outside, 1 - outside):
        index = (part * last).round().long()
        edges.append(ordered.gather(1, index).squeeze(1).nan_to_num(nan=0.0))
    return edges[0], edges[1]
