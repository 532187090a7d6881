"""TARP: coverage of balls around reference points, a test of whole pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow.diagnostics.intervals import Estimate, mean_interval
from robustflow.diagnostics.posterior.ranks import Uniformity, ranks

LEVELS = tuple(step / 20 for step in range(1, 20))


@dataclass(frozen=True)
class ExpectedCoverage:
    """How often the truth lies in a ball around a reference that holds a share of the samples.

    Attributes:
        credibility: shares of the samples.
        observed: how often the truth is in the ball too, with intervals over pictures; equal to
            the credibility if the posterior is calibrated.
        test: of the truths' ranks by distance.
    """

    credibility: tuple[float, ...]
    observed: tuple[Estimate, ...]
    test: Uniformity


def references_of(truth: Tensor, generator: torch.Generator) -> Tensor:
    """Reference points, uniform between the smallest and largest truth, value by value; (N, \\*S).

    They must not depend on a picture's own truth; through the range of N pictures they hardly do.
    """
    low, high = truth.amin(dim=0), truth.amax(dim=0)
    return low + (high - low) * torch.rand(truth.shape, generator=generator).to(truth)


def distance_rank(
    samples: Tensor, truth: Tensor, reference: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """How many samples (K, \\*S) are nearer to the reference than the truth (\\*S) is; 0-d.

    Source: Lemos et al., 2023 (arXiv:2302.03026), algorithm 2; the distance is Euclidean.
    """
    nearness = (samples - reference).flatten(1).norm(dim=1)
    return ranks(nearness, (truth - reference).norm(), generator)


def expected_coverage(values: Sequence[float]) -> tuple[Estimate, ...]:
    """The share of pictures whose value, a rank in [0, 1], is at most each of :data:`LEVELS`."""
    return tuple(mean_interval([float(each <= level) for each in values]) for level in LEVELS)
