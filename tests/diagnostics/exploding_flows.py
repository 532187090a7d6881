"""Flows whose inverse explodes at a place that is known."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from robustflow import nn as rnn

CHANNELS, CONTEXT, SIZE = 4, 3, 12
GAIN = 1 / (1 / (1 + math.exp(18)) + 1e-4)  # of a planted scale: 1 / (sigmoid(-20 + 2) + eps)


class PlantedConditioner(nn.Module):
    """A convolution of z1, and a scale logit of -20 where it is told to plant one.

    Attributes:
        places: (sample, changed channel, position ...); sample None for all.
    """

    def __init__(self, kept: int, changed: int, dims: int, kernel_size: int = 3) -> None:
        super().__init__()
        convolution: Any = (nn.Linear, nn.Conv1d, nn.Conv2d)[dims]
        options: dict[str, int] = (
            {} if dims == 0 else {"kernel_size": kernel_size, "padding": kernel_size // 2}
        )
        self.net = convolution(kept, 2 * changed, **options)
        self.places: list[tuple[int | None, ...]] = []
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(0.05)

    def forward(self, z1: Tensor, context: Tensor | None = None) -> Tensor:
        params = self.net(z1).clone()
        for sample, channel, *place in self.places:
            assert channel is not None
            which = slice(None) if sample is None else sample
            at: tuple[Any, ...] = (which, 2 * channel + 1, *place)
            params[at] = -20.0
        return params


def planted_flow(steps: int = 4, dims: int = 2, channels: int = CHANNELS) -> Any:
    """One level: in each step an actnorm, a 1x1 convolution and a coupling with such a conditioner.

    The couplings are ``levels.0.layers.2``, ``.5``, ``.8`` ...; sampling begins with the last.
    """
    layers: list[nn.Module] = []
    for _ in range(steps):
        kept = channels // 2
        conditioner = PlantedConditioner(kept, channels - kept, dims)
        layers += [
            rnn.ActNorm(channels),
            rnn.InvertibleConv1x1(channels),
            rnn.Coupling(channels, 0, rnn.Affine(), conditioner),
        ]
    return rnn.ConditionalFlow([layers]).eval()


def plant(flow: Any, step: int, *place: int | None) -> str:
    """Plant an explosion in a step's coupling; returns its name."""
    name = f"levels.0.layers.{3 * step + 2}"
    conditioner = flow.get_submodule(name).conditioner
    assert isinstance(conditioner, PlantedConditioner)
    conditioner.places.append(place)
    return name


def latents(number: int = 3, dims: int = 2, channels: int = CHANNELS) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(number, channels, *[SIZE] * dims, generator=generator)


def reached_by(flow: Any, name: str, marked: Tensor) -> Tensor:
    """What NaN in the marked elements, behind a layer, becomes in the flow's output."""
    names = [f"levels.0.layers.{i}" for i in reversed(range(len(flow.levels[0].layers)))]
    z = torch.zeros(marked.shape).masked_fill(marked, math.nan)
    with torch.no_grad():
        for later in names[names.index(name) + 1 :]:
            z = flow.get_submodule(later)(z, None, inverse=True)[0]
    return z.isnan()
