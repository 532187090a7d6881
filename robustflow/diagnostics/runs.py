"""One pass through a flow's layers, with summaries of its tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustflow._versions import Unchanged
from robustflow.diagnostics._layers import Layer, Watched
from robustflow.diagnostics._moments import Summary
from robustflow.diagnostics.figures import LayerMap
from robustflow.diagnostics.onsets import Mask, Onset, any_channel

_KEPT = 8  # number of latest tensors to recognise: the branches that a graph may have


class Value(Unchanged):
    """An output tensor of a layer with its summary; its shape as (N, C, \\*S)."""

    __slots__ = ("device", "mask", "shape", "summary")

    def __init__(self, tensor: Tensor, z: Tensor, mask: Mask, summary: Summary | None) -> None:
        super().__init__(tensor)
        self.shape, self.device = z.shape, z.device
        self.mask = mask
        self.summary = summary

    def summary_of(self, tensor: Tensor) -> Summary | None:
        """The summary, unless the tensor may have been written to since."""
        return self.summary if self.holds(tensor) else None


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
    clean: bool = field(default=True, repr=False)  # nothing crossed
    steps: int = field(default=0, repr=False)
    maps: list[LayerMap] = field(default_factory=list, repr=False)
    _kept: list[tuple[Layer | None, int, Tensor, int | None]] = field(
        default_factory=list, repr=False
    )
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
        """The record of this tensor object."""
        if not self._values:
            return None
        value = self._values[-1]
        if value.reference() is tensor:  # as nearly always
            return value
        return next((each for each in self._values if each.reference() is tensor), None)

    def masks_of(self, known: Sequence[Value | None], inputs: Sequence[Tensor]) -> list[Mask]:
        """Masks of the elements of a layer's inputs (N, C, \\*S) that earlier crossings reached.

        Args:
            known: of each, the result of :meth:`value_of`.
            inputs: the tensors.
        """
        mask = self._values[-1].mask if self._values else None
        if mask is None or any(each is not None for each in known):
            return [None if each is None else each.mask for each in known]
        # Unknown code computed them from the last layer's output: split it, joined others to it.
        return [_fitted(mask, z) for z in inputs]

    def keep(self, layer: Layer | None, magnitudes: Tensor) -> None:
        """A map of z behind the layer, or of the latents, until :meth:`close`."""
        reach = 0 if layer is None else layer.reach
        self._kept.append((layer, self.steps, magnitudes, reach))

    def close(self) -> int:
        """Keep only the maps of samples with onsets; returns the number of bytes freed."""
        if self.map_rows is not None:
            return 0
        kept, self._kept = self._kept, []
        before = sum(magnitudes.nbytes for _, _, magnitudes, _ in kept)
        self.map_rows = sorted({onset.sample - self.first_sample for onset in self.onsets})
        if not self.onsets:
            return before
        for layer, step, magnitudes, reach in kept:
            if len(self.map_rows) < self.samples:
                magnitudes = magnitudes[self.map_rows]
            if layer is None:
                self.maps.append(LayerMap("latents", "other", step - 1, magnitudes, 0))
            else:
                self.maps.append(LayerMap(layer.name, layer.kind, step, magnitudes, reach))
        return before - sum(each.magnitudes.nbytes for each in self.maps)


def _fitted(mask: Tensor, z: Tensor) -> Mask:
    """A mask for a tensor that unknown code computed from the mask's tensor."""
    if z.shape == mask.shape:
        return mask
    if len(z) != len(mask):
        return None
    if z.shape[2:] == mask.shape[2:]:
        return any_channel(mask).expand(z.shape)
    samples = mask.flatten(1).any(dim=1)
    return samples.view(-1, *[1] * (z.dim() - 1)).expand(z.shape)
