"""Reading a trained flow: its samples by the radius of the condition, and layer by layer.

The radius of a condition is its largest \\|y\\|: 1 is the edge of the training square.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow.experiments.toy.law import Law

RADII = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
OUTSIDE = 3.0  # the radius that is looked at closely
DIRECTIONS = 64
LATENTS = 128  # for each direction
ABSURD = 10.0
_NAMES = {rnn.Coupling: "coupling", rnn.InvertibleConv1x1: "1x1", rnn.ActNorm: "actnorm"}


@dataclass(frozen=True)
class RadiusReading:
    """What a flow made of conditions at one radius.

    Attributes:
        radius: of the conditions.
        directions: the fraction of them with an absurd sample.
        absurd: the fraction of absurd samples.
        largest: the largest \\|x\\|; infinity where a value is not finite.
        median: of the samples' largest \\|x\\|.
    """

    radius: float
    directions: float
    absurd: float
    largest: float
    median: float


@dataclass(frozen=True)
class LayerReading:
    """One layer's output while sampling, in the order of sampling; slopes, of couplings.

    Attributes:
        name: such as ``"coupling 1"``, counted from the latents.
        variance: the larger one of the two channels'.
        growth: the largest ratio of its output's magnitude to its input's, or to 1 if that is more.
        slopes: for each sample, the derivative c' of the coupling's forward transform (the inverse
            multiplies by one over it); None of other layers.
    """

    name: str
    variance: float
    growth: float
    slopes: Tensor | None


def conditions(radius: float, directions: int = DIRECTIONS) -> Tensor:
    """Conditions around the square of this radius at equal angles, (directions, 2).

    Example:
        >>> conditions(2.0, 4).round(decimals=3).abs().tolist()
        [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    """
    angles = (torch.arange(directions) + 0.5) * (2 * math.pi / directions)
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    return radius * circle / circle.abs().amax(dim=1, keepdim=True)


def absurd_limit(law: Law, radius: float) -> float:
    """A larger \\|x\\| is absurd: ten times the largest of the law, carried on to this radius."""
    return ABSURD * max(1.0, radius) * law.largest


def read_radius(flow: rnn.ConditionalFlow, law: Law, radius: float) -> RadiusReading:
    """Sample at this radius: 128 latents, the same for all flows, in each of 64 directions."""
    samples = sample_at(flow, radius, DIRECTIONS, LATENTS)
    sizes = samples.abs().amax(dim=2).nan_to_num(nan=math.inf)
    absurd = sizes > absurd_limit(law, radius)
    return RadiusReading(
        radius,
        float(absurd.any(dim=1).float().mean()),
        float(absurd.float().mean()),
        float(sizes.max()),
        float(sizes.median()),
    )


@torch.no_grad()
def sample_at(
    flow: rnn.ConditionalFlow, radius: float, directions: int, num_samples: int
) -> Tensor:
    """Samples (directions, num_samples, 2) at :func:`conditions` of this radius."""
    y = conditions(radius, directions).repeat_interleave(num_samples, dim=0)
    samples, _ = flow.inverse((latents(len(y)),), y)
    return samples.unflatten(0, (directions, num_samples))


def latents(number: int) -> Tensor:
    """Standard normal latents, (number, 2): the same in every call."""
    return torch.randn(number, 2, generator=torch.Generator().manual_seed(2**21))


@dataclass(frozen=True)
class Step:
    """One layer while sampling.

    Attributes:
        name: as of the flow's ``named_modules()``.
        layer: the module.
        before, after: its input and output in this direction, (N, 2).
        logabsdet: of this direction, (N,).
    """

    name: str
    layer: nn.Module
    before: Tensor
    after: Tensor
    logabsdet: Tensor


def walk(flow: rnn.ConditionalFlow, z: Tensor, y: Tensor) -> Iterator[Step]:
    """Sample from latents (N, 2), given conditions (N, 2), one layer after the other."""
    named = {layer: name for name, layer in flow.named_modules()}
    (level,) = flow.levels
    assert isinstance(level, rnn.FlowLevel)
    for layer in reversed(level.layers):
        after, logabsdet = layer(z, y, inverse=True)
        yield Step(named[layer], layer, z, after, logabsdet)
        z = after


@torch.no_grad()
def read_layers(flow: rnn.ConditionalFlow, y: Tensor) -> list[LayerReading]:
    """Sample once at each condition (N, 2) and look at every layer's output."""
    readings = []
    for index, step in enumerate(walk(flow, latents(len(y)), y)):
        growth = step.after.abs().amax(dim=1) / step.before.abs().amax(dim=1).clamp(min=1.0)
        # One of the two channels is transformed, so the log-determinant is its own.
        is_coupling = isinstance(step.layer, rnn.Coupling)
        readings.append(
            LayerReading(
                f"{_NAMES[type(step.layer)]} {index // len(_NAMES) + 1}",
                float(step.after.var(dim=0).nan_to_num(nan=math.inf).max()),
                float(growth.nan_to_num(nan=math.inf).max()),
                (-step.logabsdet).exp() if is_coupling else None,
            )
        )
    return readings
