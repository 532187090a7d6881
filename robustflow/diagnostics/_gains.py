"""The inverse derivatives of every layer while a model samples, with their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustflow.diagnostics._find import find_layers
from robustflow.diagnostics._layers import Layer, Probe, Replay, Run, Watcher


class GainWatcher(Watcher):
    """Collects, layer by layer, the largest log inverse derivative of each sample.

    Attributes:
        log_gains: by the layer's name, (N,), of the latest call.
        kinds: by the layer's name, its kind.
    """

    derivatives: ClassVar[bool] = True
    gradients: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.log_gains: dict[str, Tensor] = {}
        self.kinds: dict[str, str] = {}
        self._noted: list[list[Tensor]] = []
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
        self._noted.append([])
        try:
            with self.calling(layer):
                result = run()
        finally:
            noted = self._noted.pop()
        if noted:
            number = len(inputs[0])
            # Asked here, where no call is under way: a scale is what the layer's own code makes.
            each = [_of_samples(self._log_gains(layer, values), number) for values in noted]
            self.log_gains[layer.name] = torch.stack(each).amax(dim=0)
            self.kinds[layer.name] = layer.kind
        return result

    def params(self, layer: Layer, params: Tensor) -> Tensor:
        if layer.affine is not None:
            # A copy: FrEIA's AllInOneBlock writes to its parameters.
            logits = layer.affine.logits(params).clone()
            self.note(logits, last=layer.kind == "autoregressive")
        return params

    def note(self, log_derivatives: Tensor, *, last: bool = False) -> None:
        if self._noted and not self._asking:
            if last:
                self._noted[-1].clear()
            self._noted[-1].append(log_derivatives)

    def _log_gains(self, layer: Layer, noted: Tensor) -> Tensor:
        """Log inverse derivatives, of what was noted: those themselves, or raw scales."""
        if layer.affine is None:
            return noted
        self._asking = True  # it may call the layer's own methods
        try:
            return layer.affine.log_gain(noted.reshape(-1)).reshape(noted.shape)
        finally:
            self._asking = False


def _of_samples(logs: Tensor, number: int) -> Tensor:
    """The largest of each sample, (N,); one row serves all where the parameters do."""
    rows = logs.reshape(len(logs), -1).amax(dim=1) if logs.dim() else logs[None]
    return rows.expand(number) if len(rows) == 1 else rows


@contextmanager
def watching(model: nn.Module, layers: Iterable[str] | None = None) -> Iterator[GainWatcher]:
    """A :class:`GainWatcher` of a model's layers, or of those named, within the block."""
    watcher = GainWatcher()
    watcher.start(find_layers(model, layers))
    try:
        yield watcher
    finally:
        watcher.stop()


def largest_gains(watcher: GainWatcher, number: int) -> Tensor:
    """(layers, N): of each layer and sample the largest log inverse derivative.

    Raises:
        ValueError: no layer with one was called, or not once for each of ``number`` contexts.
    """
    logs = list(watcher.log_gains.values())
    if not logs:
        raise ValueError(
            "No layer with an inverse derivative was called: run must sample from the model, and "
            "the model must have conditional layers that are known."
        )
    if any(len(each) != number for each in logs):
        raise ValueError(
            f"run must sample once for each of the {number} contexts; the layers were called with "
            f"a batch of {len(logs[0])}."
        )
    return torch.stack(logs)
