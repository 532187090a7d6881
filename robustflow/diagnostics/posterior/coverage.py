"""Coverage of pixels and of the means of regions, beside the nominal one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robustflow.diagnostics.intervals import Estimate, mean_interval
from robustflow.diagnostics.posterior.ranks import ranks

_WANTED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_SIDES = (1, 4, 16)
WHOLE = 0  # as a side, stands for the mean of the whole picture


@dataclass(frozen=True)
class Coverage:
    """How often the truth lies in the samples' central intervals.

    Attributes:
        region: "pixels", "means of 4 x 4", ..., "means of all".
        nominal: shares that the intervals should cover; those that K samples allow exactly.
        observed: shares that they cover, with intervals over pictures.
    """

    region: str
    nominal: tuple[float, ...]
    observed: tuple[Estimate, ...]

    @property
    def largest_gap(self) -> tuple[float, Estimate]:
        """The nominal share with the largest error, and the observed one."""
        pairs = zip(self.nominal, self.observed, strict=True)
        return max(pairs, key=lambda pair: abs(pair[1].value - pair[0]))


def tails(number: int) -> dict[int, float]:
    """The central intervals that ``number`` samples give, as {a: share that they should hold}.

    The interval from the a-th smallest to the a-th largest of K samples holds a further draw of
    the same distribution with probability 1 - 2 a / (K + 1), exactly, whatever the distribution.
    Of all a, those nearest to 0.1, 0.2, ..., 0.9, 0.95.

    Example:
        >>> tails(9)
        {4: 0.2, 3: 0.4, 2: 0.6, 1: 0.8}
    """
    shares = {a: (number + 1 - 2 * a) / (number + 1) for a in range(number // 2, 0, -1)}
    chosen = {min(shares, key=lambda a: abs(shares[a] - share)) for share in _WANTED}
    return {a: share for a, share in shares.items() if a in chosen and share > 0}


def sides_of(shape: Sequence[int]) -> list[int]:
    """Sides of square regions that fit a picture (C, \\*S), and :data:`WHOLE`."""
    if len(shape) == 1:
        return [1, WHOLE]
    return [side for side in _SIDES if side <= min(shape[1:])] + [WHOLE]


def name_of(side: int, dims: int) -> str:
    """A region's name."""
    if side == 1:
        return "pixels" if dims else "components"
    return "means of all" if side == WHOLE else f"means of {' x '.join([str(side)] * dims)}"


def means(x: Tensor, side: int) -> Tensor:
    """Means of regions of (N, C, \\*S) or (N, D); remainders at the ends are left out."""
    if side == 1:
        return x
    if side == WHOLE:
        return x.flatten(2).mean(dim=2) if x.dim() > 2 else x.mean(dim=1, keepdim=True)
    pools = {3: functional.avg_pool1d, 4: functional.avg_pool2d, 5: functional.avg_pool3d}
    return pools[x.dim()](x, side)


def inside(rank: Tensor, number: int, tail: int) -> Tensor:
    """Whether the truth with these ranks lies between the tail-th smallest and largest sample."""
    return (rank >= tail) & (rank <= number - tail)


class CoverageSums:
    """Counts, picture by picture, for :class:`Coverage`.

    Args:
        number: K, of the samples of a picture.
        shape: of a picture.
        generator: breaks ties between samples and the truth.
    """

    def __init__(self, number: int, shape: Sequence[int], generator: torch.Generator) -> None:
        self._number, self._generator = number, generator
        self._dims = len(shape) - 1
        self._tails = tails(number)
        self._map_tail = min(self._tails, key=lambda a: abs(self._tails[a] - 0.9))
        self._shares: dict[int, list[list[float]]] = {side: [] for side in sides_of(shape)}
        self._maps: list[Tensor] = []

    @property
    def map_level(self) -> float:
        """The nominal share of the map."""
        return self._tails[self._map_tail]

    def add(self, samples: Tensor, truth: Tensor) -> None:
        """One picture's samples (K, \\*S) and truth (\\*S)."""
        for side, shares in self._shares.items():
            regions, true = means(samples, side), means(truth[None], side)[0]
            region_ranks = ranks(regions, true, self._generator)
            masks = {a: inside(region_ranks, self._number, a).float() for a in self._tails}
            shares.append([float(mask.mean()) for mask in masks.values()])
            if side == 1:
                mask = masks[self._map_tail].cpu()
                self._maps.append(mask.mean(dim=0) if self._dims else mask)

    def map(self) -> Tensor:
        """The share of pictures that hold each pixel, mean over channels."""
        return torch.stack(self._maps).mean(dim=0)

    def result(self) -> tuple[Coverage, ...]:
        """Of every kind of region."""
        return tuple(
            Coverage(
                name_of(side, self._dims),
                tuple(self._tails.values()),
                tuple(mean_interval(column) for column in zip(*shares, strict=True)),
            )
            for side, shares in self._shares.items()
        )
