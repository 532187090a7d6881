"""The inverse derivatives of every layer while a model samples, with their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustflow.diagnostics._calls import Call, CallWatcher
from robustflow.diagnostics._find import find_layers
from robustflow.diagnostics._layers import Layer


class GainWatcher(CallWatcher):
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

    def seen(self, layer: Layer, call: Call, y: Tensor, x: Tensor) -> None:
        logs = [*call.noted, *(self.log_gain(layer, logits) for logits in call.logits)]
        if logs:
            each = torch.stack([_of_samples(values, len(y)) for values in logs])
            self.log_gains[layer.name] = each.amax(dim=0)
            self.kinds[layer.name] = layer.kind


def _of_samples(logs: Tensor, number: int) -> Tensor:
    """The largest of each sample, (N,); parameters of batch size 1 count for all samples."""
    rows = logs.reshape(len(logs), -1).amax(dim=1) if logs.dim() else logs[None]
    return rows.expand(number) if len(rows) == 1 else rows


@contextmanager
def watching(model: nn.Module, layers: Iterable[str] | None = None) -> Iterator[GainWatcher]:
    """Within the block, a :class:`GainWatcher` of a model's layers, or of those named."""
    watcher = GainWatcher()
    watcher.start(find_layers(model, layers))
    try:
        yield watcher
    finally:
        watcher.stop()


def largest_gains(watcher: GainWatcher, number: int) -> Tensor:
    """The largest log inverse derivative of each layer and sample, (layers, N).

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
