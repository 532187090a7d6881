"""The input and the result of every detector."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from robustflow.diagnostics.artifacts.observations import Operator, residual


@dataclass(frozen=True)
class Thresholds:
    """The scores above which a place is an artifact, and the least size of a region.

    Values are in units of the samples' range: [0, 1], or ``value_range`` mapped to it. The
    defaults were set on clean photographs and on samples of a flow that does not explode
    (docs/artifacts.md).

    Attributes:
        area: least share of a picture that a saturated, black, reference or ensemble region takes.
        limit: how near to 0 or 1 a displayed value counts as there: half an 8-bit step.
        edge: least contrast of a black region with what surrounds it.
        consistency: largest |A(x) - y|.
        contrast: largest 1 - D of the local contrast map.
        ensemble: largest distance from the median, in robust standard deviations.
        grid: largest excess power at the grid's frequencies, in bels (powers of ten).
    """

    area: float = 1 / 4096
    limit: float = 0.5 / 255
    edge: float = 0.1
    consistency: float = 0.15
    contrast: float = 0.85
    ensemble: float = 12.0
    grid: float = 1.0


@dataclass(frozen=True)
class Detection:
    """A detector's result for one sample.

    Attributes:
        score: (\\*S), larger where an artifact is likelier; finite or +inf.
        mask: (\\*S), bool.
    """

    score: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Sample:
    """One sample and what is known of it. Values are in units of the range: [0, 1].

    Attributes:
        x: (C, \\*S), not clamped.
        observation: y, (c, \\*s), if there is one.
        apply: A, if it is known.
        compare: the map to the observation's size for comparing colours: A, or a substitute, or
        None.
        safe: a sample without artifacts, (C, \\*S), if there is one.
        outliers: (\\*S), how far x is from other samples, if there are.
        grid_levels: how often the flow squeezes by 2.
    """

    x: Tensor
    observation: Tensor | None = None
    apply: Operator | None = None
    compare: Operator | None = None
    safe: Tensor | None = None
    outliers: Tensor | None = None
    grid_levels: int = 2
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def size(self) -> torch.Size:
        """(\\*S)"""
        return self.x.shape[1:]

    @cached_property
    def observed(self) -> Tensor | None:
        """Where the observation agrees with x as displayed, (\\*S), bool; None without one."""
        if self.observation is None or self.compare is None:
            return None
        agrees = residual(displayed(self.x), self.observation, self.compare)
        return enlarged(agrees <= self.thresholds.consistency, self.size)


def displayed(x: Tensor) -> Tensor:
    """x as a picture file has it: clamped to [0, 1], and black where it is not a number.

    Converting NaN to 8 bits gives 0 on the usual processors.

    Example:
        >>> displayed(torch.tensor([0.25, 3e8, -torch.inf, torch.inf - torch.inf])).tolist()
        [0.25, 1.0, 0.0, 0.0]
    """
    return x.nan_to_num(nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1)


def enlarged(coarse: Tensor, size: torch.Size) -> Tensor:
    """(\\*s) at a larger size (\\*S): each pixel spread over those that it covers.

    Example:
        >>> enlarged(torch.tensor([1, 2]), torch.Size([6])).tolist()
        [1, 1, 1, 2, 2, 2]
    """
    for dim, length in enumerate(size):
        centres = (2 * torch.arange(length, device=coarse.device) + 1) * coarse.shape[dim]
        coarse = coarse.index_select(dim, centres // (2 * length))
    return coarse
