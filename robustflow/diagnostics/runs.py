"""One pass through a flow's layers, and what is known of the tensors in it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustflow.diagnostics._layers import Watched
from robustflow.diagnostics._moments import Summary
from robustflow.diagnostics.figures import LayerMap
from robustflow.diagnostics.onsets import Mask, Onset, any_channel

_KEPT = 8  # latest tensors that are recognised: as many branches as a graph may have


class Value:
    """A tensor that came out of a layer, and what is known of it; its shape as (N, C, \\*S)."""

    __slots__ = ("device", "mask", "reference", "shape", "summary", "version")

    def __init__(self, tensor: Tensor, z: Tensor, mask: Mask, summary: Summary | None) -> None:
        self.reference = weakref.ref(tensor)
        self.version = None if tensor.is_inference() else tensor._version
        self.shape, self.device = z.shape, z.device
        self.mask = mask
        self.summary = summary

    def summary_of(self, tensor: Tensor) -> Summary | None:
        """The summary, unless the tensor may have been written to since."""
        return (
            self.summary if self.version is not None and tensor._version == self.version else None
        )


@dataclass(eq=False)
class WatchedRun:
    """One pass through the watched layers, from latents to data.

    Attributes:
        number: from 0.
        first_sample: the number of its first sample, among those of all runs.
        samples: how many it has.
        density: it went from data to latents.
        onsets: of this run.
    """

    number: int
    first_sample: int
    samples: int
    density: bool
    onsets: list[Onset] = field(default_factory=list)
    # For the monitor.
    called: set[Watched] = field(default_factory=set, repr=False)
    steps: int = field(default=0, repr=False)
    maps: list[LayerMap] = field(default_factory=list, repr=False)
    map_rows: list[int] | None = field(default=None, repr=False)  # once it is closed
    _values: deque[Value] = field(default_factory=lambda: deque(maxlen=_KEPT), repr=False)

    @property
    def contaminated(self) -> Tensor:
        """Where an onset reached the output of its last layer: bool, (N, C, \\*S)."""
        last = self._values[-1]
        if last.mask is None:
            return torch.zeros(last.shape, dtype=torch.bool, device=last.device)
        return last.mask.contiguous()

    def remember(self, tensor: Tensor, z: Tensor, mask: Mask, summary: Summary | None) -> None:
        self._values.append(Value(tensor, z, mask, summary))

    def value_of(self, tensor: Tensor) -> Value | None:
        """What is known of this very tensor."""
        for value in reversed(self._values):
            if value.reference() is tensor:
                return value
        return None

    def masks_of(self, known: Sequence[Value | None], inputs: Sequence[Tensor]) -> list[Mask]:
        """What earlier crossings reached of a layer's inputs (N, C, \\*S).

        Args:
            known: of each, the result of :meth:`value_of`.
            inputs: the tensors.
        """
        mask = self._values[-1].mask if self._values else None
        if mask is None or any(each is not None for each in known):
            return [None if each is None else each.mask for each in known]
        # Something in between made them of the last layer's output: split it, joined others to it.
        return [_fitted(mask, z) for z in inputs]

    def close(self) -> int:
        """Keep the maps of samples with onsets alone; how many bytes that frees."""
        if self.map_rows is not None:
            return 0
        before = sum(each.magnitudes.nbytes for each in self.maps)
        self.map_rows = sorted({onset.sample - self.first_sample for onset in self.onsets})
        if len(self.map_rows) < self.samples:
            self.maps = [each.of(self.map_rows) for each in self.maps] if self.onsets else []
        return before - sum(each.magnitudes.nbytes for each in self.maps)


def _fitted(mask: Tensor, z: Tensor) -> Mask:
    """A mask for a tensor that was made of the mask's in a way that is not known."""
    if z.shape == mask.shape:
        return mask
    if len(z) != len(mask):
        return None
    if z.shape[2:] == mask.shape[2:]:
        return any_channel(mask).expand(z.shape)
    samples = mask.flatten(1).any(dim=1)
    return samples.view(-1, *[1] * (z.dim() - 1)).expand(z.shape)
