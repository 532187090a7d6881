"""The shifts that conditioners make while a model samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustflow.compat.convert import RescaledModifiedRQSpline
from robustflow.diagnostics._calls import Call, CallWatcher
from robustflow.diagnostics._layers import Layer
from robustflow.diagnostics.bounds import Bounds
from robustflow.diagnostics.scores.features import widest_dtype
from robustflow.nn.elementwise import Affine, ModifiedRQSpline

# Which of an element's raw parameters the shift is.
_INDEX: dict[type, int] = {Affine: 0, ModifiedRQSpline: 3, RescaledModifiedRQSpline: 3}


class ShiftWatcher(CallWatcher):
    """Records the largest magnitude of each layer's shifts, over all calls.

    Args:
        bounds_of: the bounds of a layer's transform, by the layer's name.

    Attributes:
        shifts: by the layer's name. If a transform's shift cannot be read, an upper bound from how
            far it moved values; if that is not known either, the layer is left out.
    """

    def __init__(self, bounds_of: Callable[[str], Bounds | None]) -> None:
        super().__init__()
        self.shifts: dict[str, float] = {}
        self._bounds_of = bounds_of

    def seen(self, layer: Layer, call: Call, y: Tensor, x: Tensor) -> None:
        largest = self._largest(layer, call, y, x)
        if largest is not None:
            self.shifts[layer.name] = max(largest, self.shifts.get(layer.name, 0.0))

    def transformed(self, layer: Layer, transform: object, x: Tensor, params: Tensor) -> None:
        index = _INDEX.get(type(transform))
        if not self.calls or index is None:
            return
        call = self.calls[-1]
        if layer.kind == "autoregressive" and x.shape[1] > 1:
            call.shifts.clear()  # only the last of its passes has the right parameters
        number: int = transform.num_params  # type: ignore[attr-defined]
        packed = params.dim() == x.dim()
        call.shifts.append(params[:, index::number] if packed else params[..., index])

    def _largest(self, layer: Layer, call: Call, y: Tensor, x: Tensor) -> float | None:
        """The largest shift of a call that mapped latents y to x."""
        if call.shifts:
            return max(float(shifts.abs().max()) for shifts in call.shifts)
        bounds = self._bounds_of(layer.name)
        if bounds is None:
            return None
        if call.logits:
            return self._of_affine(layer, call.logits[-1], bounds, y, x)
        if bounds.displacement < torch.inf:
            return float((y - x).abs().max()) + bounds.displacement
        return None

    def _of_affine(
        self, layer: Layer, logits: Tensor, bounds: Bounds, y: Tensor, x: Tensor
    ) -> float | None:
        """x = g y - t where the shift is added last, and g (y - t) where it is not."""
        log_gain = self.log_gain(layer, logits)
        if logits.shape != y.shape:
            y, x = (_changed(layer, each) for each in (y, x))
        if logits.shape != y.shape:
            return None
        dtype = widest_dtype(y.device)
        y, x, gain = y.to(dtype), x.to(dtype), log_gain.to(dtype).exp()
        shifts = gain * y - x if bounds.inverse.shift == 1 else y - x / gain
        return float(shifts.abs().max())


def _changed(layer: Layer, values: Tensor) -> Tensor:
    """The channels of z that a coupling transforms."""
    if isinstance(layer.changed, slice):
        return values[..., layer.changed] if layer.channels_last else values[:, layer.changed]
    return values.index_select(-1 if layer.channels_last else 1, layer.changed)
