"""Data in two dimensions, x given a condition y: one law that shows the effect, and two controls.

In each y is uniform on [-1, 1]². What matters is the width of x given y at the edge of that square:
a scale that still falls there goes on falling beyond it, where nothing was learned.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

_SPREAD = ((0.4, 0.2), (0.0, 0.25))  # of a parallelogram of width 1, from u in [-1, 1]²


class Law(ABC):
    """A distribution of pairs (x, y), both of two dimensions."""

    @property
    @abstractmethod
    def entropy(self) -> float:
        """Of x given y, in nats, mean over y: no model's negative log-likelihood is lower."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """The supremum of |x₁| and |x₂|."""

    @abstractmethod
    def given(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """One x for each condition, (N, 2) -> (N, 2)."""

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pairs: x (number, 2), y (number, 2)."""
        y = _symmetric(number, generator)
        return self.given(y, generator), y


@dataclass(frozen=True)
class Parallelogram(Law):
    """x uniform on a parallelogram around y / 2, whose width grows with the largest \\|y\\|.

    ``w = narrowest + (1 - narrowest) max(|y₁|, |y₂|)²`` and
    ``x = y / 2 + w / 2 (0.8 u₁ + 0.4 u₂, 0.5 u₂)``, u uniform on [-1, 1]².

    Attributes:
        narrowest: w at y = 0, in (0, 1]. At the edge of the training square w is 1; it still grows
            there, unless ``narrowest`` is 1: then the parallelogram is the same for every y.

    Example:
        >>> round(Parallelogram().entropy, 3), round(Parallelogram(narrowest=1.0).entropy, 3)
        (-2.601, -0.916)
    """

    narrowest: float = 0.05

    @property
    def entropy(self) -> float:
        # The density is 1 / (0.4 w²); w - narrowest is uniform, as the square of a largest |y| is.
        n = self.narrowest
        mean_log_width = 0.0 if n == 1 else -1 - n * math.log(n) / (1 - n)
        return math.log(0.4) + 2 * mean_log_width

    @property
    def largest(self) -> float:
        return 0.5 + max(sum(row) for row in _SPREAD)

    def width(self, y: Tensor) -> Tensor:
        """w, (N, 2) -> (N, 1)."""
        square = y.abs().amax(dim=1, keepdim=True).square()
        return self.narrowest + (1 - self.narrowest) * square

    def given(self, y: Tensor, generator: torch.Generator) -> Tensor:
        spread = _symmetric(len(y), generator) @ torch.tensor(_SPREAD).T
        return 0.5 * y + self.width(y) * spread


@dataclass(frozen=True)
class Checkerboard(Law):
    """x uniform on the eight dark fields of a board of 4 x 4, of side 2, around y / 2.

    Eight modes, as wide for every y: what decides here is which densities a model can express.
    """

    @property
    def entropy(self) -> float:
        return math.log(2.0)  # the area of the dark fields

    @property
    def largest(self) -> float:
        return 1.5

    def given(self, y: Tensor, generator: torch.Generator) -> Tensor:
        column = torch.randint(4, (len(y),), generator=generator)
        row = 2 * torch.randint(2, (len(y),), generator=generator) + column % 2
        corner = 0.5 * torch.stack([column, row], dim=1) - 1
        inside = 0.5 * torch.rand(len(y), 2, generator=generator)
        return 0.5 * y + corner + inside


LAWS: dict[str, Law] = {
    "widening": Parallelogram(),
    "fixed width": Parallelogram(narrowest=1.0),
    "checkerboard": Checkerboard(),
}


def _symmetric(number: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(number, 2, generator=generator) - 1
