"""The condition that makes a sample largest, searched by gradient, against the certified bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow import nn as rnn
from robustflow.diagnostics import certify
from robustflow.experiments.toy.models import shift_of
from robustflow.experiments.toy.reading import LATENTS, conditions, latents, walk

RADII = (1.0, 3.0, 6.0)
_STARTS = 256
_STEPS = 40


@dataclass(frozen=True)
class Attack:
    """The worst that a search found among the conditions within one radius.

    Attributes:
        radius: of the square of conditions that was searched.
        largest: the largest \\|x\\| found; infinity where a value is not finite.
        bound: what the certificate allows that sample, with the shifts that its conditioners made.
        shifts: the largest of those.
        condition: the condition that was found.
    """

    radius: float
    largest: float
    bound: float
    shifts: float
    condition: tuple[float, float]


def attack(flow: rnn.ConditionalFlow, radius: float) -> Attack:
    """Search conditions in [-radius, radius]² for the largest \\|x\\|.

    Starts from the 256 largest samples that the reading finds at this radius. Each latent is kept
    and its condition follows the sign of the gradient of log \\|x\\|, in 40 shrinking steps; what
    counts is the largest of all that was seen.
    """
    z, y = _starts(flow, radius)
    best, best_y = torch.full((len(z),), -1.0), y
    for step in range(_STEPS + 1):
        y.requires_grad_()
        samples, _ = flow.inverse((z,), y)
        sizes = samples.abs().amax(dim=1)
        (slope,) = torch.autograd.grad(sizes.clamp(min=1e-6).log().sum(), y)
        y, sizes = y.detach(), sizes.detach().nan_to_num(nan=math.inf)
        best_y = torch.where((sizes > best)[:, None], y, best_y)
        best = torch.maximum(sizes, best)
        length = 0.25 * radius * (1 - step / _STEPS)
        y = (y + length * slope.nan_to_num(nan=0.0).sign()).clamp(-radius, radius)
    worst = int(best.argmax())
    bound, shifts = bound_at(flow, z[worst : worst + 1], best_y[worst : worst + 1])
    first, second = best_y[worst].tolist()
    return Attack(radius, float(best[worst]), bound, shifts, (first, second))


@torch.no_grad()
def _starts(flow: rnn.ConditionalFlow, radius: float) -> tuple[Tensor, Tensor]:
    """Latents and conditions of the reading's largest samples at this radius."""
    y = conditions(radius).repeat_interleave(LATENTS, dim=0)
    z = latents(len(y))
    sizes = flow.inverse((z,), y)[0].abs().amax(dim=1).nan_to_num(nan=math.inf)
    largest = sizes.topk(_STARTS).indices
    return z[largest], y[largest]


@torch.no_grad()
def bound_at(flow: rnn.ConditionalFlow, z: Tensor, y: Tensor) -> tuple[float, float]:
    """What the certificate allows max \\|x\\| for one latent and one condition, each (1, 2).

    Returns:
        The bound, and the largest shift that a conditioner made: the certificate bounds all but the
        shifts, which are what the conditioners make of the condition.
    """
    shifts = {
        step.name: float(shift_of(step.layer, step.before, y).abs().max())
        for step in walk(flow, z, y)
        if isinstance(step.layer, rnn.Coupling)
    }
    growth = certify(flow).growth
    gain, constant = growth.given({name: shifts[name] for name in growth.shifts})
    # It bounds root mean squares of the two channels; the larger channel is at most √2 times that.
    root_mean_square = float(z.double().square().mean().sqrt())
    return math.sqrt(2) * (gain * root_mean_square + constant), max(shifts.values())
