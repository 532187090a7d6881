"""What is kept of the values that pass a layer: few numbers, and the largest at each position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow import _native

_LARGE = 1e15  # squares of larger values leave float32
_FEW = 16  # positions, for which the native loops do not pay
_LOOPS = _native.loops()


@dataclass(frozen=True)
class Summary:
    """Of one tensor z (N, C, \\*S).

    Attributes:
        peaks: largest |z| at each position, (N, \\*S); NaN where there is one.
        peak: the largest of them.
        count, nonfinite: of elements, and of those that are not finite.
        total, squares: sums over the finite ones, of z and of its square.
    """

    peaks: Tensor
    peak: float
    count: int
    nonfinite: int
    total: float
    squares: float


def summarise(z: Tensor) -> Summary:
    """Of z (N, C, \\*S): one pass over its memory by the native loop, where that serves it."""
    z = z.detach()
    if not _served(z):
        return _summarise(z)
    batch, channels, *space = z.shape
    peaks = z.new_empty(batch, *space)
    peak, *sums, nonfinite = _LOOPS.summarise(
        z.data_ptr(), batch, channels, math.prod(space), peaks.data_ptr()
    )
    return Summary(peaks, peak, z.numel(), nonfinite, *sums)


def grown(before: Tensor, after: Tensor, growth: float) -> Tensor:
    """Positions of (N, C, \\*S) where some |after| is ``growth`` times max(1, |before|) or more.

    Or where a value is not finite. bool, (N, \\*S).
    """
    before, after = before.detach(), after.detach()
    if not (_served(after) and _served(before)):
        least = growth * before.abs().clamp(min=1)
        return ~(after.abs() < least).view(torch.uint8).amin(dim=1).view(torch.bool)
    batch, channels, *space = after.shape
    marks = torch.empty(batch, *space, dtype=torch.bool)
    addresses = before.data_ptr(), after.data_ptr()
    _LOOPS.crossings(*addresses, batch, channels, math.prod(space), growth, marks.data_ptr())
    return marks


def _served(z: Tensor) -> bool:
    """Whether the native loops can read z, and are the faster."""
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


@dataclass
class Moments:
    """Sums of :class:`Summary` over calls."""

    count: int = 0
    nonfinite: int = 0
    total: float = 0.0
    squares: float = 0.0
    peak: float = 0.0

    def add(self, summary: Summary) -> None:
        self.count += summary.count
        self.nonfinite += summary.nonfinite
        self.total += summary.total
        self.squares += summary.squares
        # max() would drop NaN, which is the largest here.
        self.peak = summary.peak if not summary.peak <= self.peak else self.peak

    @property
    def variance(self) -> float:
        """Of the finite values; NaN without any."""
        finite = self.count - self.nonfinite
        if finite == 0:
            return math.nan
        return max(0.0, self.squares / finite - (self.total / finite) ** 2)

    @property
    def magnitude(self) -> float:
        """The largest absolute value: infinity where one is not finite."""
        return self.peak if math.isfinite(self.peak) else math.inf
