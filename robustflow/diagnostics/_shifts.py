"""The shifts that conditioners make while a model samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustflow.compat.convert import RescaledModifiedRQSpline
from robustflow.diagnostics._layers import Layer, Probe, Replay, Run, Watcher
from robustflow.diagnostics.bounds import Bounds
from robustflow.nn.elementwise import Affine, ModifiedRQSpline

# Which of an element's raw parameters the shift is.
_INDEX: dict[type, int] = {Affine: 0, ModifiedRQSpline: 3, RescaledModifiedRQSpline: 3}


class _Call:
    """What was seen in one call of a layer."""

    def __init__(self) -> None:
        self.shifts: list[Tensor] = []
        self.logits: Tensor | None = None


class ShiftWatcher(Watcher):
    """Notes the largest magnitude of each layer's shifts, over all calls.

    Args:
        bounds_of: the bounds of a layer's transform, by the layer's name.

    Attributes:
        shifts: by the layer's name; where a transform keeps its shift to itself, an upper bound,
            from how far it moved values. Layers for which neither is known have none.
    """

    def __init__(self, bounds_of: Callable[[str], Bounds | None]) -> None:
        super().__init__()
        self.shifts: dict[str, float] = {}
        self._bounds_of = bounds_of
        self._calls: list[_Call] = []
        self._asking = False

    def call(
        self,
        layer: Layer,
        density: bool,
        inputs: Sequence[Tensor],
        run: Run,
        *,
        probe: Probe | None = None,
        replay: Replay | None = None,
    ) -> Any:
        if density or not layer.conditional or self._asking:
            return run()
        self._calls.append(_Call())
        try:
            with self.calling(layer):
                result = run()
        finally:
            call = self._calls.pop()
        largest = self._largest(layer, call, inputs[-1], layer.outputs(result)[-1])
        if largest is not None:
            self.shifts[layer.name] = max(largest, self.shifts.get(layer.name, 0.0))
        return result

    def params(self, layer: Layer, params: Tensor) -> Tensor:
        if self._calls and not self._asking and layer.affine is not None:
            # A copy: FrEIA's AllInOneBlock writes to its parameters.
            self._calls[-1].logits = layer.affine.logits(params).clone()
        return params

    def transformed(self, layer: Layer, transform: object, x: Tensor, params: Tensor) -> None:
        index = _INDEX.get(type(transform))
        if not self._calls or index is None:
            return
        call = self._calls[-1]
        if layer.kind == "autoregressive" and x.shape[1] > 1:
            call.shifts.clear()  # only the last of its passes has the right parameters
        number: int = transform.num_params  # type: ignore[attr-defined]
        packed = params.dim() == x.dim()
        call.shifts.append(params[:, index::number] if packed else params[..., index])

    def _largest(self, layer: Layer, call: _Call, y: Tensor, x: Tensor) -> float | None:
        """From what was seen in a call that took latents y and gave x."""
        if call.shifts:
            return max(float(shifts.abs().max()) for shifts in call.shifts)
        bounds = self._bounds_of(layer.name)
        if bounds is None:
            return None
        if call.logits is not None:
            return self._of_affine(layer, call.logits, bounds, y, x)
        if bounds.displacement < torch.inf:
            return float((y - x).abs().max()) + bounds.displacement
        return None

    def _of_affine(
        self, layer: Layer, logits: Tensor, bounds: Bounds, y: Tensor, x: Tensor
    ) -> float | None:
        """x = g y - t where the shift is added last, and g (y - t) where it is not."""
        assert layer.affine is not None
        self._asking = True  # it may call the layer's own methods
        try:
            log_gain = layer.affine.log_gain(logits.reshape(-1)).reshape(logits.shape)
        finally:
            self._asking = False
        if logits.shape != y.shape:
            y, x = (_changed(layer, each) for each in (y, x))
        if logits.shape != y.shape:
            return None
        y, x, gain = y.double(), x.double(), log_gain.double().exp()
        shifts = gain * y - x if bounds.inverse.shift == 1 else y - x / gain
        return float(shifts.abs().max())


def _changed(layer: Layer, values: Tensor) -> Tensor:
    """The channels of z that a coupling transforms."""
    if isinstance(layer.changed, slice):
        return values[..., layer.changed] if layer.channels_last else values[:, layer.changed]
    return values.index_select(-1 if layer.channels_last else 1, layer.changed)
