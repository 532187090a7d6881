"""How many samples are faulty by the published rule: the numbers printed for each picture."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from robustflow.diagnostics.artifacts import faulty_pixels


@dataclass(frozen=True)
class Faults:
    """What is wrong with the samples of one picture.

    Attributes:
        samples: number of samples.
        faulty: how many have a pixel above 1.5 or below -0.5, or one that is not finite.
        pixels: the fraction of such values among all.
        largest: largest absolute value; infinity where a value is not finite.
    """

    samples: int
    faulty: int
    pixels: float
    largest: float

    def as_json(self) -> dict[str, Any]:
        """As numbers for a JSON file, which has no infinity: "inf" stands for it."""
        return asdict(self) | ({} if math.isfinite(self.largest) else {"largest": "inf"})


def count_faults(samples: Tensor) -> Faults:
    """Count over samples (n, C, H, W).

    Example:
        >>> import torch
        >>> count_faults(torch.tensor([0.2, 1.6]).view(2, 1, 1, 1))
        Faults(samples=2, faulty=1, pixels=0.5, largest=1.600000023841858)
    """
    faults = faulty_pixels(samples)
    largest = samples.abs().nan_to_num(nan=float("inf"), posinf=float("inf")).max()
    return Faults(
        samples=len(samples),
        faulty=int(faults.flatten(1).any(dim=1).sum()),
        pixels=float(faults.float().mean()),
        largest=float(largest),
    )


def total_faults(parts: Iterable[Faults]) -> Faults:
    """All of them together, where every sample has the same number of values.

    Example:
        >>> total_faults([Faults(5, 1, 0.25, 2.0), Faults(5, 0, 0.0, 1.25)])
        Faults(samples=10, faulty=1, pixels=0.125, largest=2.0)
    """
    every = list(parts)
    samples = sum(part.samples for part in every)
    return Faults(
        samples,
        sum(part.faulty for part in every),
        sum(part.pixels * part.samples for part in every) / samples,
        max(part.largest for part in every),
    )
