"""Summaries of the values that pass a layer: a few sums, and the largest at each position."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustflow import _native

_LARGE = 1e15  # squares of larger values leave float32
_FEW = 16  # positions, for which the native loops do not pay
_LOOPS = _native.loops()
_MANY = 4096  # calls whose numbers are kept apart

Numbers = tuple[float, int, int, float, float]  # those of a Summary


class Summary(NamedTuple):
    """Summary of one tensor z (N, C, \\*S).

    Attributes:
        peaks: largest |z| at each position, (N, \\*S); NaN if a channel is.
        peak: the largest of them.
        elements, nonfinite: how many there are, and are not finite.
        total, squares: sums over the finite ones, of z and of its square.
    """

    peaks: Tensor
    peak: float
    elements: int
    nonfinite: int
    total: float
    squares: float


def summarise(z: Tensor) -> Summary:
    """Summarise z (N, C, \\*S), in one pass by the native loop if that supports it."""
    z = z.detach()
    if not _served(z):
        return _summarise(z)
    batch, channels, *space = z.shape
    peaks = z.new_empty(batch, *space)
    peak, *sums, nonfinite = _LOOPS.summarise(
        z.data_ptr(), batch, channels, math.prod(space), peaks.data_ptr()
    )
    return Summary(peaks, peak, z.numel(), nonfinite, *sums)


def crossing_positions(
    before: Tensor, after: Tensor, growth: float, magnitude: float, mask: Tensor | None
) -> Tensor:
    """Positions of (N, C, \\*S) where a channel crosses, as :func:`crossing_rules` says.

    Args:
        mask: where none counts; bool, (N, C, \\*S).

    Returns:
        bool, (N, \\*S).
    """
    before, after = before.detach(), after.detach()
    if not (_served(after) and _served(before)):
        crossed = crossing_rules(before.abs(), after.abs(), growth, magnitude)[0]
        if mask is not None:
            crossed &= ~mask
        return crossed.view(torch.uint8).amax(dim=1).view(torch.bool)
    batch, channels, *space = after.shape
    marks = torch.empty(batch, *space, dtype=torch.bool)
    address, strides = 0, [0, 0]
    if mask is not None:
        if not mask[0, 0].is_contiguous():
            mask = mask.contiguous()
        address, strides = mask.data_ptr(), list(mask.stride()[:2])
    _LOOPS.find_crossings(
        before.data_ptr(),
        after.data_ptr(),
        address,
        *strides,
        batch,
        channels,
        math.prod(space),
        growth,
        magnitude,
        marks.data_ptr(),
    )
    return marks


def crossing_rules(
    before: Tensor, after: Tensor, growth: float, magnitude: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks: where magnitudes cross, where by growth, and where by becoming non-finite.

    Args:
        before, after: absolute values; ``before`` broadcasts.
        growth, magnitude: see :class:`InverseMonitor`.
    """
    largest = torch.finfo(after.dtype).max
    grew = after >= growth * before.clamp(min=1)
    reached = (after >= magnitude) & (before < magnitude)
    fresh = ~(after <= largest)
    return (before <= largest) & (grew | reached | fresh), grew, fresh


def _served(z: Tensor) -> bool:
    """Whether the native loops support z, and are faster."""
    return (
        z.dtype == torch.float32
        and z.dim() > 2
        and z.is_cpu
        and z.is_contiguous()
        and z.numel() >= _FEW * z.shape[0] * z.shape[1]
        and _LOOPS is not None
    )


def _summarise(z: Tensor) -> Summary:
    """In PyTorch: three passes where all is finite."""
    if z.dtype not in (torch.float32, torch.float64):
        z = z.float()
    peaks = z.abs().amax(dim=1)
    count = z.numel()
    if count == 0:
        return Summary(peaks, 0.0, 0, 0, 0.0, 0.0)
    flat = z.reshape(-1)
    peak, total, squares = _numbers(peaks.amax(), flat.sum(), torch.dot(flat, flat))
    if peak < _LARGE:
        return Summary(peaks, peak, count, 0, total, squares)
    largest, nonfinite = peak, 0
    if not math.isfinite(peak):
        finite = flat.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        nonfinite = int(torch.count_nonzero(flat != finite))
        flat = finite
        (largest,) = _numbers(flat.abs().max())
    unit = flat / (largest or 1.0)
    total, squares = _numbers(unit.sum(), torch.dot(unit, unit))
    return Summary(peaks, peak, count, nonfinite, total * largest, squares * largest**2)


def _numbers(*scalars: Tensor) -> list[float]:
    """Their values, in one transfer from a device."""
    if scalars[0].device.type == "cpu":
        return [scalar.item() for scalar in scalars]
    return torch.stack(scalars).tolist()


class Moments:
    """Sums of :class:`Summary` over calls."""

    def __init__(self) -> None:
        self._calls: list[Numbers] = []  # summed when they are many, or asked for

    def add(self, summary: Summary) -> None:
        self._calls.append(summary[1:])
        if len(self._calls) >= _MANY:
            self._sum()

    def _sum(self) -> Numbers:
        if len(self._calls) > 1:
            peaks, *columns = zip(*self._calls, strict=True)
            # max() may drop NaN, which is the largest here.
            peak = math.nan if any(math.isnan(each) for each in peaks) else max(peaks)
            count, nonfinite, total, squares = map(sum, columns)
            self._calls = [(peak, count, nonfinite, total, squares)]
        return self._calls[0] if self._calls else (0.0, 0, 0, 0.0, 0.0)

    @property
    def nonfinite(self) -> int:
        return self._sum()[2]

    @property
    def variance(self) -> float:
        """Of the finite values; NaN without any."""
        _, count, nonfinite, total, squares = self._sum()
        finite = count - nonfinite
        if finite == 0:
            return math.nan
        return max(0.0, squares / finite - (total / finite) ** 2)

    @property
    def magnitude(self) -> float:
        """The largest absolute value: infinity where one is not finite."""
        peak = self._sum()[0]
        return peak if math.isfinite(peak) else math.inf
