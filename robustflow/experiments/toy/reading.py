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
from robustflow.diagnostics import InverseMonitor
from robustflow.experiments.toy.law import Law

RADII = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
OUTSIDE = 3.0  # the radius that is looked at closely
DIRECTIONS = 64
LATENTS = 128  # for each direction
ABSURD = 10.0
EXPLOSION = 100.0  # growth in a layer; shifts, which every coupling has but RQ, reach 20 outside
_WORDS = {"self-conditional": "coupling"}
_LAYERS_A_STEP = 3


@dataclass(frozen=True)
class RadiusReading:
    """A flow's samples for conditions at one radius.

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
    """One layer while sampling, in the order of sampling.

    Attributes:
        name: such as ``"coupling 1"``, counted from the latents.
        variance: of its output, over samples and channels.
        magnitude: the largest absolute value of its output.
        onsets: number of explosions that begin there, of
            :class:`~robustflow.diagnostics.InverseMonitor`: a value grew by 100 in this layer.
        slopes: for each sample, the derivative c' of the coupling's forward transform (the inverse
            multiplies by one over it); None of other layers.
    """

    name: str
    variance: float
    magnitude: float
    onsets: int
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
    z = latents(len(y))
    # One of the two channels is transformed, so the log-determinant is its own.
    slopes = {
        step.name: (-step.logabsdet).exp()
        for step in walk(flow, z, y)
        if isinstance(step.layer, rnn.Coupling)
    }
    with InverseMonitor(flow, growth=EXPLOSION) as monitor:
        flow.inverse((z,), y)
    return [
        LayerReading(
            f"{_WORDS.get(record.kind, record.kind)} {index // _LAYERS_A_STEP + 1}",
            record.output_variance,
            record.output_magnitude,
            record.onsets,
            slopes.get(record.name),
        )
        for index, record in enumerate(monitor.report().layers)
    ]
