"""A level of a flow: the layers that work at one resolution, under one feature tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustflow.nn.actnorm import ActNorm
from robustflow.nn.conditioner import Conditioner, project_together
from robustflow.nn.conv1x1 import InvertibleConv1x1
from robustflow.nn.coupling import Coupling
from robustflow.nn.elementwise import ElementwiseTransform
from robustflow.nn.injector import Injector
from robustflow.nn.layer import ConditionalLayer
from robustflow.nn.split import Split

States = tuple[Any, ...]


def flow_step(
    channels: int, context_channels: int, transform: ElementwiseTransform, **conditioner: Any
) -> list[nn.Module]:
    """One step of a conditional flow: actnorm, invertible 1x1 convolution, injector, coupling.

    Args:
        channels: channels of z.
        context_channels: channels of the context.
        transform: the elementwise transform of the injector and the coupling.
        conditioner: ``hidden_channels``, ``kernel_size`` and the like, for both conditioners.

    Example:
        >>> from robustflow.nn import ModifiedRQSpline
        >>> len(flow_step(12, 16, ModifiedRQSpline(), hidden_channels=32))
        4
    """
    return [
        ActNorm(channels),
        InvertibleConv1x1(channels),
        Injector(channels, context_channels, transform, **conditioner),
        Coupling(channels, context_channels, transform, **conditioner),
    ]


class FlowLevel(nn.Module):
    """Layers that share one feature tensor; a :class:`Split` as the last one ends the level.

    Args:
        layers: modules called as ``layer(z, context, inverse=...) -> (z, logabsdet (N,))``.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        if not layers:
            raise ValueError("A level needs at least one layer.")
        self.layers = nn.ModuleList(layers)

    @property
    def split(self) -> Split | None:
        """The layer that factors out half of the channels, if there is one."""
        last = self.layers[-1]
        return last if isinstance(last, Split) else None

    @property
    def latent_channels(self) -> int:
        """Channels of the latent that this level makes."""
        if self.split is not None:
            return self.split.channels - self.split.kept_channels
        channels: list[Any] = [getattr(layer, "channels", None) for layer in self.layers]
        known = [number for number in channels if number is not None]
        if not known:
            raise ValueError("A level to sample from needs a layer that knows its channels.")
        return known[-1]

    def project(self, features: Tensor) -> States:
        """Each layer's ``project(features)``; None for layers without one.

        The first layers of the default conditioners run as one wide layer.
        """
        states: list[Any] = [None] * len(self.layers)
        together: dict[torch.Size, dict[int, Conditioner]] = {}
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, ConditionalLayer):
                continue
            conditioner = layer.conditioner
            if isinstance(conditioner, Conditioner) and conditioner.can_join:
                kernel = conditioner.context_layer.weight.shape[1:]
                together.setdefault(kernel, {})[index] = conditioner
            else:
                states[index] = layer.project(features)
        for conditioners in together.values():
            projected = project_together(list(conditioners.values()), features)
            for index, state in zip(conditioners, projected, strict=True):
                states[index] = state
        return tuple(states)

    def forward(self, z: Tensor, states: States) -> tuple[Tensor, Tensor | None, Tensor]:
        """z -> what goes on to the next level, the latent that left (or None), logabsdet (N,)."""
        logabsdet = z.new_zeros(z.shape[0])
        for layer, state in zip(self.layers, states, strict=True):
            z, change = _apply(layer, z, state, inverse=False)
            logabsdet = logabsdet + change
        if self.split is None:
            return z, None, logabsdet
        return *self.split.divide(z), logabsdet

    def inverse(self, z: Tensor, latent: Tensor | None, states: States) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` returned -> z, logabsdet (N,) of this direction."""
        if latent is not None:
            z = torch.cat([z, latent], dim=1)
        logabsdet = z.new_zeros(z.shape[0])
        for layer, state in zip(reversed(self.layers), reversed(states), strict=True):
            z, change = _apply(layer, z, state, inverse=True)
            logabsdet = logabsdet + change
        return z, logabsdet


def _apply(layer: nn.Module, z: Tensor, state: Any, *, inverse: bool) -> tuple[Tensor, Tensor]:
    if isinstance(layer, ConditionalLayer):
        return layer.transform_with(z, state, inverse=inverse)
    return layer(z, inverse=inverse)
