"""The couplings, and small conditional flows that differ in them only."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow import nn as rnn
from robustflow.diagnostics.bounds import NICE, ONE, Bounds, affine_bounds, bounds_of
from robustflow.experiments.toy.training import Settings


@dataclass(frozen=True)
class Additive:
    """Shift alone, ``y = x + shift``: it cannot explode, and cannot scale.

    Source: Dinh et al., NICE, 2014 (arXiv:1410.8516).

    Example:
        >>> import torch
        >>> Additive()(torch.ones(1, 2), torch.tensor([[2.0, 3.0]]))[0]
        tensor([[3., 4.]])
    """

    num_params: ClassVar[int] = 1
    identity_params: ClassVar[tuple[float, ...]] = (0.0,)

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        return (x - params if inverse else x + params), x.new_zeros(x.shape[0])


@bounds_of.register
def _(transform: Additive) -> Bounds:
    return affine_bounds(ONE, "data", formula="x + t", source=NICE)


# All that is trained and reported follows this catalogue.
COUPLINGS: dict[str, rnn.ElementwiseTransform] = {
    "additive": Additive(),
    "affine": rnn.Affine(),
    "soft-clamped affine": rnn.Affine(scale="atan_exp"),  # FrEIA's, with its clamp of 2
    "reparametrised affine": rnn.Affine(reciprocal=True),
    "modified RQ, ±0.5": rnn.ModifiedRQSpline.published(),
    "modified RQ, ±3": rnn.ModifiedRQSpline(),
    "cubic B-spline, ±3": rnn.CubicBSpline(),
    "RQ, 8 bins": rnn.RQSpline(num_bins=8),
}


# Which parameter of an element is the shift, for those that have one.
SHIFT_INDEX = {Additive: 0, rnn.Affine: 0, rnn.ModifiedRQSpline: 3, rnn.CubicBSpline: 10}


def shift_of(coupling: rnn.Coupling, z: Tensor, context: Tensor) -> Tensor:
    """The shifts that the coupling's conditioner makes, (N,); zero for a transform without one.

    Raises:
        ValueError: the transform has a shift, and ``SHIFT_INDEX`` does not say where.

    Args:
        coupling: of a flow of :func:`build_flow`.
        z: (N, 2), of either side: the conditioner reads the channel that stays.
        context: (N, 2).
    """
    transform = coupling.transform
    index = SHIFT_INDEX.get(type(transform))
    if index is None:
        bounds = bounds_of(transform)
        if bounds is None or bounds.inverse.shift:
            raise ValueError(
                f"{type(transform).__name__} has a shift or no known bounds: add it to "
                "SHIFT_INDEX, and its bounds to bounds_of."
            )
        return z.new_zeros(len(z))
    return coupling.params_of(z[:, : coupling.kept_channels], coupling.project(context))[:, index]


class NormalisedLinear(nn.Module):
    """A linear layer without bias, then an ActNorm, as one multiplication.

    The first call in training mode gives every output of that batch mean 0 and deviation 1.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(in_channels, out_channels).weight.detach())
        self.norm = rnn.ActNorm(out_channels)
        self._is_started = False

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and not self._is_started:
            with torch.no_grad():
                self.norm(functional.linear(inputs, self.weight))
            self._is_started = True
        scale = self.norm.log_scale.exp()
        return functional.linear(inputs, self.weight * scale[:, None], self.norm.bias * scale)


class Conditioner(nn.Module):
    """The published conditioner of the 2-D experiment, on ``[z1, context]``.

    Hidden layers with an ActNorm and a ReLU each, and a last layer that starts at zero: at the
    transform's ``identity_params``.
    """

    def __init__(
        self, in_channels: int, transform: rnn.ElementwiseTransform, settings: Settings
    ) -> None:
        super().__init__()
        widths = [in_channels] + [settings.hidden_channels] * settings.hidden_layers
        self.hidden = nn.ModuleList(
            NormalisedLinear(narrow, wide) for narrow, wide in itertools.pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], transform.num_params)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(torch.tensor(transform.identity_params))

    def forward(self, z1: Tensor, context: Tensor) -> Tensor:
        hidden = torch.cat([z1, context], dim=1)
        for layer in self.hidden:
            hidden = layer(hidden).relu()
        return self.head(hidden)


def build_flow(transform: rnn.ElementwiseTransform, settings: Settings) -> rnn.ConditionalFlow:
    """Steps of coupling, 1x1 and actnorm, in the order of sampling; x (N, 2) given y (N, 2)."""
    layers: list[nn.Module] = []
    for _ in range(settings.steps):
        conditioner = Conditioner(3, transform, settings)
        coupling = rnn.Coupling(2, 2, transform, conditioner)
        layers += [rnn.ActNorm(2), rnn.InvertibleConv1x1(2), coupling]
    return rnn.ConditionalFlow([layers])
