"""Watches whole calls of the conditional layers while a model samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from robustflow.diagnostics._layers import Layer, Probe, Replay, Run, Watcher


@dataclass
class Call:
    """What was recorded in one call of a layer.

    Attributes:
        logits: raw scales of an affine layer.
        noted: elementwise log-derivatives of others.
        shifts: shifts of robustflow's own transforms.
    """

    logits: list[Tensor] = field(default_factory=list)
    noted: list[Tensor] = field(default_factory=list)
    shifts: list[Tensor] = field(default_factory=list)


class CallWatcher(Watcher):
    """Passes each call of a conditional layer, from latents to data, to :meth:`seen`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._asking = False

    @abstractmethod
    def seen(self, layer: Layer, call: Call, y: Tensor, x: Tensor) -> None:
        """Called after a call that mapped y to x."""

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
        self.calls.append(Call())
        try:
            with self.calling(layer):
                result = run()
        finally:
            call = self.calls.pop()
        self.seen(layer, call, inputs[-1], layer.outputs(result)[-1])
        return result

    def params(self, layer: Layer, params: Tensor) -> Tensor:
        if self.calls and not self._asking and layer.affine is not None:
            # A copy: FrEIA's AllInOneBlock writes to its parameters.
            logits = layer.affine.logits(params).clone()
            # If a call has several passes over all features, only the last has the final
            # parameters; calls for one feature after the other add up.
            if layer.kind == "autoregressive" and logits.shape[1:].numel() > 1:
                self.calls[-1].logits.clear()
            self.calls[-1].logits.append(logits)
        return params

    def record_derivatives(self, log_derivatives: Tensor, *, last: bool = False) -> None:
        if self.calls and not self._asking:
            if last:
                self.calls[-1].noted.clear()
            self.calls[-1].noted.append(log_derivatives)

    def log_gain(self, layer: Layer, logits: Tensor) -> Tensor:
        """log \\|dx/dy\\| from an affine layer's raw scales; to be called after its call."""
        assert layer.affine is not None
        self._asking = True  # it may call the layer's own methods
        try:
            return layer.affine.log_gain(logits.reshape(-1)).reshape(logits.shape)
        finally:
            self._asking = False
