"""Where explosions begin, and the elements that they reach.

All masks are bool, (N, C, \\*S), over the elements of z: N samples, C channels, S positions. None
stands for a mask that is false everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import type_before_parametrizations

from robustflow.compat.srflow import NormalisedConv2d, ScaledConv2d
from robustflow.diagnostics._layers import Layer, Probe, Replay, asking
from robustflow.diagnostics._moments import crossing_positions, crossing_rules
from robustflow.diagnostics.kinds import Kind
from robustflow.nn.conditioner import TwoPartConditioner

Mask = Tensor | None
Reason = Literal["growth", "magnitude", "non-finite"]


@dataclass(frozen=True)
class Onset:
    """A place where an explosion begins.

    Elements that cross at the same time and touch each other, in space or in channels, are one
    onset; its position is where growth is largest.

    Attributes:
        layer: the layer's name, as in ``model.named_modules()``.
        kind: the layer's kind.
        sample: the sample's index among all that were watched, that of its row in
            ``InverseMonitor.contaminated``.
        position: channel, then the index in each spatial dimension, of z behind the layer.
        shape: z's shape there, (C, \\*S).
        growth: |out| / max(1, |in|); infinite where out is not finite.
        magnitude: \\|out\\|.
        reason: "growth" in one layer; "magnitude", reached by several layers together;
            "non-finite", from finite values.
        elements: how many crossed.
        step: number of the layer's call in its pass from latents to data, from 0.
        run: number of the pass.
    """

    layer: str
    kind: Kind
    sample: int
    position: tuple[int, ...]
    shape: tuple[int, ...]
    growth: float
    magnitude: float
    reason: Reason
    elements: int
    step: int
    run: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: "inf" stands for it, and "nan" likewise."""
        return {
            "layer": self.layer,
            "kind": self.kind,
            "sample": self.sample,
            "position": list(self.position),
            "shape": list(self.shape),
            "growth": as_json(self.growth),
            "magnitude": as_json(self.magnitude),
            "reason": self.reason,
            "elements": self.elements,
            "step": self.step,
            "run": self.run,
        }

    def __str__(self) -> str:
        channel, *place = self.position
        where = f"channel {channel}" + (f", position {tuple(place)}" if place else "")
        return (
            f"{self.layer} ({self.kind}), sample {self.sample}, {where}: growth {self.growth:.3g} "
            f"to {self.magnitude:.3g}"
        )


def as_json(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


# How far a conditioner reaches: a value at position q changes parameters from q - before to q +
# after, one pair for each spatial dimension. None: everywhere.
Reach = tuple[tuple[int, int], ...] | None

_reaches: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], Reach]] = WeakKeyDictionary()
_POINTWISE = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
    nn.Identity,
    nn.Dropout,
)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, NormalisedConv2d, ScaledConv2d)


def reach_of(conditioner: nn.Module | None, probe: Probe | None, kept: Tensor) -> Reach:
    """How far a coupling's conditioner reaches.

    Read from its layers if they are plain convolutions. Otherwise measured, once for each size: a
    NaN in its input makes every output NaN that depends on it.

    Args:
        conditioner: the module.
        probe: calls it.
        kept: what it reads, (N, C, \\*S).
    """
    size = tuple(kept.shape[2:])
    if conditioner is None or not size:
        return None
    key = (conditioner.training, *size)
    known = _reaches.setdefault(conditioner, {})
    if key not in known:
        radii = _radii(conditioner, len(size))
        if radii is not None:
            known[key] = tuple((radius, radius) for radius in radii)
        elif probe is None or any(module.training for module in conditioner.modules()):
            return None  # NaN would stay in a batch norm's statistics
        else:
            known[key] = _measured(probe, kept)
    return known[key]


def _radii(module: nn.Module, dims: int) -> list[int] | None:
    """The reach of a stack of convolutions that keep the size; None for anything else."""
    kind: Any = type_before_parametrizations(module)
    if kind in _POINTWISE:
        return [0] * dims
    if kind in _CONVOLUTIONS:
        conv: Any = module
        if any(each != 1 for each in conv.stride) or len(conv.kernel_size) != dims:
            return None
        extents = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        same = conv.padding == "same" or [2 * pad for pad in conv.padding] == extents
        return [extent // 2 for extent in extents] if same else None
    parts: list[nn.Module]
    if isinstance(module, TwoPartConditioner) and kind.forward is TwoPartConditioner.forward:
        parts = [module.trunk] if module.z_layer is None else [module.z_layer, module.trunk]
    elif isinstance(module, nn.Sequential) and (
        kind is nn.Sequential or kind.__module__.startswith("robustflow.compat.srflow")
    ):
        parts = list(module)
    else:
        return None
    every = [_radii(part, dims) for part in parts]
    known = [each for each in every if each is not None]
    if len(known) < len(every):
        return None
    return [sum(column) for column in zip(*known, strict=True)]


@torch.no_grad()
def _measured(probe: Probe, kept: Tensor) -> Reach:
    """Measured from both ends of the picture: from its middle, kernel gaps can hide the reach."""
    size = kept.shape[2:]
    ends = []
    for corner in ((0,) * len(size), (-1,) * len(size)):
        marked = torch.zeros_like(kept)  # all samples, since the context has as many
        at: tuple[Any, ...] = (slice(None), slice(None), *corner)
        marked[at] = math.nan
        with asking():
            params = probe(marked)
        if params.shape[2:] != size:
            return None
        affected = params.isnan().flatten(0, 1).any(dim=0).nonzero()
        if not len(affected):
            return tuple((-side, -side) for side in size)  # nothing depends on it
        ends.append((affected.amin(0).tolist(), affected.amax(0).tolist()))
    (_, afters), (befores, _) = ends
    return tuple(
        # At the other end the true reach may be larger than what is visible.
        (side if first == 0 else side - 1 - first, side if last == side - 1 else last)
        for first, last, side in zip(befores, afters, size, strict=True)
    )


def dilate(mask: Tensor, reach: Reach) -> Tensor:
    """Where something true is within reach, of (N, C, \\*S)."""
    if reach is None:
        spread = mask.flatten(2).any(dim=2) if mask.dim() > 2 else mask
        return spread.view(*spread.shape, *[1] * (mask.dim() - 2)).expand_as(mask)
    for dim, (before, after) in enumerate(reach, start=2):
        if min(before, after) < 0:
            return torch.zeros_like(mask)
        side = mask.shape[dim]
        before, after = min(before, side - 1), min(after, side - 1)
        edges = [0, 0] * (mask.dim() - 1 - dim) + [after, before]
        wide, width = functional.pad(mask, edges), 1
        while width < before + after + 1:  # each round covers up to twice as much
            step = min(width, before + after + 1 - width)
            length = wide.shape[dim] - step
            wide = wide.narrow(dim, 0, length) | wide.narrow(dim, step, length)
            width += step
        mask = wide
    return mask


def any_channel(mask: Tensor) -> Tensor:
    """(N, C, \\*S) -> (N, 1, \\*S)."""
    return mask.view(torch.uint8).amax(dim=1, keepdim=True).view(torch.bool)


def spread(
    layer: Layer,
    masks: Sequence[Mask],
    inputs: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    probe: Probe | None,
    replay: Replay | None,
) -> list[Mask]:
    """The masks of a layer's outputs, from the masks of its inputs.

    Args:
        layer, probe, replay: as for :meth:`Watcher.call`.
        masks, inputs: one mask for each input; for a part of a block, those of the block.
        shapes: of the outputs.
    """
    present = [mask for mask in masks if mask is not None]
    if not present:
        return [None] * len(shapes)
    if layer.spread == "replay" and replay is not None:
        return _replayed(masks, inputs, replay)
    if layer.spread == "sample" or len(masks) > 1 or [present[0].shape] != list(shapes):
        samples = torch.stack([mask.flatten(1).any(dim=1) for mask in present]).any(dim=0)
        return [samples.view(-1, *[1] * (len(each) - 1)).expand(each) for each in shapes]
    mask = present[0]
    if layer.spread == "elementwise":
        return [mask]
    if layer.spread == "channels":
        return [any_channel(mask).expand_as(mask)]
    kept = mask[:, layer.kept]
    if not kept.shape[1]:
        return [mask]
    reach = reach_of(layer.conditioner, probe, inputs[0][:, layer.kept])
    layer.reach = None if reach is None else max((0, *map(max, reach)))
    changed = mask.clone()
    changed[:, layer.changed] |= dilate(any_channel(kept), reach)
    return [changed]


@torch.no_grad()
def _replayed(masks: Sequence[Mask], inputs: Sequence[Tensor], replay: Replay) -> list[Mask]:
    marked = []
    for each, mask in zip(inputs, masks, strict=True):
        zeros = torch.zeros_like(each)
        marked.append(zeros if mask is None else zeros.masked_fill_(mask, math.nan))
    with asking():
        return [out.isnan() for out in replay(marked)]


@dataclass(frozen=True)
class Crossings:
    """Elements of one call's output that cross, K of them.

    Attributes:
        index: (K, 2 + dims): sample, channel, position.
        growth, magnitude: (K,).
        reasons: (K,), an index into :data:`REASONS`.
    """

    index: Tensor
    growth: Tensor
    magnitude: Tensor
    reasons: Tensor

    def of_channels(self, channels: Tensor) -> Crossings:
        """The crossings with renumbered channels: channel c becomes ``channels[c]``."""
        index = self.index.clone()
        index[:, 1] = channels[index[:, 1]]
        return Crossings(index, self.growth, self.magnitude, self.reasons)

    def joined(self, mask: Mask, shape: Sequence[int]) -> Tensor:
        """The mask, of this shape, with the crossings added."""
        joined = torch.zeros(shape, dtype=torch.bool, device=self.index.device)
        joined[tuple(self.index.unbind(1))] = True
        return joined if mask is None else joined | mask


REASONS: tuple[Reason, ...] = ("growth", "magnitude", "non-finite")


@dataclass(frozen=True)
class Limits:
    """What counts as a crossing; see :class:`InverseMonitor`."""

    growth: float
    magnitude: float


def find_crossings(
    layer: Layer,
    before: Tensor,
    after: Tensor,
    peaks: tuple[Tensor, Tensor],
    mask: Mask,
    limits: Limits,
    *,
    whole: bool = True,
) -> Crossings | None:
    """Elements of a layer's output that cross, where the mask is false.

    Args:
        layer: which.
        before, after: its input and output.
        peaks: the largest |z| of both at each position.
        mask: what crossings before this one reached, of the output's shape.
        limits: of growth and of magnitude.
        whole: the tensors are all of z; otherwise a coupling's changed channels.
    """
    # A layer that is the same for every input multiplies by constants: that is no growth.
    bounds = (limits.growth if layer.conditional else math.inf, limits.magnitude)
    alone = layer.elementwise and before.shape == after.shape
    if alone:
        candidates = crossing_positions(before, after, *bounds, mask)
    elif peaks[0].shape == peaks[1].shape and layer.spread != "sample":
        inside = None if mask is None else _everywhere(mask)
        first, last = (each[:, None] for each in peaks)
        candidates = crossing_positions(first, last, *bounds, inside)
    else:
        candidates = ~(peaks[1] < min(bounds))  # NaN, too
    # Kept channels do not cross: they do not change.
    chosen = layer.changed if whole and layer.spread == "coupling" else slice(None)
    part = after[:, chosen]
    if mask is not None:
        mask = mask[:, chosen]
    sample, *place = candidates.nonzero().unbind(1)
    if not len(sample):
        return None
    at: tuple[Any, ...] = (sample, slice(None), *place)
    position: tuple[Any, ...] = (sample, *place)
    out = part[at].abs()  # (K, C)
    if alone:
        reference = before[:, chosen][at].abs()
    elif peaks[0].shape == peaks[1].shape and layer.spread != "sample":
        reference = peaks[0][position][:, None]
    elif len(peaks[0]) == len(peaks[1]):
        reference = peaks[0].flatten(1).amax(dim=1)[sample][:, None]
    else:
        return None  # the samples are not the same
    crossed, grew, fresh = crossing_rules(reference, out, *bounds)
    if mask is not None:
        crossed &= ~mask[at]
    row, channel = crossed.nonzero().unbind(1)
    if not len(row):
        return None
    growth = (out / reference.clamp(min=1)).nan_to_num(nan=math.inf, posinf=math.inf)
    reasons = torch.where(fresh, 2, torch.where(grew, 0, 1))
    at_crossing = (row, channel)
    channel = torch.arange(after.shape[1], device=after.device)[chosen][channel]
    index = torch.stack([sample[row], channel, *(each[row] for each in place)], dim=1)
    return Crossings(index, growth[at_crossing], out[at_crossing], reasons[at_crossing])


def _everywhere(mask: Tensor) -> Tensor:
    """Positions where all channels are in a mask, (N, 1, \\*S)."""
    if mask.stride(1) == 0:
        return mask[:, :1]
    return mask.view(torch.uint8).amin(dim=1, keepdim=True).view(torch.bool)


def grouped(crossings: Crossings, size: Sequence[int]) -> list[tuple[int, int]]:
    """Groups of touching crossings: (index of the strongest, number of elements) for each.

    Args:
        crossings: at least one.
        size: of z's spatial dimensions, S.
    """
    samples, rows = crossings.index[:, 0].unique(return_inverse=True)
    place = (rows, *crossings.index[:, 2:].unbind(1))
    marks = torch.zeros(len(samples), *size, dtype=torch.bool, device=rows.device)
    marks[place] = True
    labels, group = components(marks)[place].unique(return_inverse=True)
    order = crossings.growth.nan_to_num(nan=math.inf).argsort(descending=True, stable=True)
    counts = torch.bincount(group, minlength=len(labels)).tolist()
    strongest: dict[int, int] = {}
    for index, number in zip(order.tolist(), group[order].tolist(), strict=True):
        strongest.setdefault(number, index)
    return [(index, counts[number]) for number, index in strongest.items()]


def components(marks: Tensor) -> Tensor:
    """Labels of connected elements, diagonals too, from 1 in each sample of (N, \\*S); else 0."""
    labels = torch.arange(1, marks.numel() + 1, device=marks.device).view(marks.shape) * marks
    while True:
        grown = labels
        for dim in range(1, marks.dim()):
            side = marks.shape[dim]
            if side > 1:
                first, last = grown.narrow(dim, 0, side - 1), grown.narrow(dim, 1, side - 1)
                wider = grown.clone()
                wider.narrow(dim, 1, side - 1).copy_(torch.maximum(last, first))
                here = wider.narrow(dim, 0, side - 1)
                here.copy_(torch.maximum(here, last))
                grown = wider
        grown = grown * marks
        # A label is the number of an element, whose own label may be higher by now.
        flat = grown.flatten()
        grown = torch.where(flat > 0, flat[flat - 1], 0).view(marks.shape)
        if torch.equal(grown, labels):
            return labels
        labels = grown
