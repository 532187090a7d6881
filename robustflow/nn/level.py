"""A level of a flow: the layers that work at one resolution, under one feature tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustflow._checks import check_choice
from robustflow.nn._checks import check_layers
from robustflow.nn.actnorm import ActNorm
from robustflow.nn.condition import Unprojected, projected
from robustflow.nn.conditioner import (
    ConditionerOptions,
    TwoPartConditioner,
    join_key,
    project_together,
)
from robustflow.nn.conv1x1 import InvertibleConv1x1
from robustflow.nn.coupling import Coupling
from robustflow.nn.elementwise import ElementwiseTransform
from robustflow.nn.injector import Injector
from robustflow.nn.layer import ConditionalLayer
from robustflow.nn.precision import zero_logabsdet
from robustflow.nn.reversible import run_reversibly
from robustflow.nn.split import Split
from robustflow.nn.upsampled import Upsampled

if TYPE_CHECKING:
    from typing_extensions import Unpack

States = tuple[Any, ...]
Activations = Literal["store", "recompute", "reversible"]


def flow_step(
    channels: int,
    context_channels: int,
    transform: ElementwiseTransform,
    *,
    lu: bool = True,
    **options: Unpack[ConditionerOptions],
) -> list[nn.Module]:
    """One step of a flow: actnorm, invertible 1x1 convolution, injector, coupling.

    Args:
        channels: channels of z.
        context_channels: channels of the context; 0 for a step without context, and so without
            injector.
        transform: the elementwise transform of the injector and the coupling.
        lu: the 1x1 convolution in LU form; False for the plain one.
        options: ``hidden_channels``, ``spatial_dims`` and the like, for both conditioners.

    Example:
        >>> from robustflow.nn import ModifiedRQSpline
        >>> len(flow_step(12, 16, ModifiedRQSpline(), hidden_channels=32))
        4
    """
    step: list[nn.Module] = [ActNorm(channels), InvertibleConv1x1(channels, lu=lu)]
    if context_channels > 0:
        step.append(Injector(channels, context_channels, transform, **options))
    return [*step, Coupling(channels, context_channels, transform, **options)]


class FlowLevel(nn.Module):
    """Layers that share one feature tensor; a :class:`Split` as the last one ends the level.

    Args:
        layers: modules called as ``layer(z, context, inverse=...) -> (z, logabsdet (N,))``, with
            a context whose batch size is that of z or 1, or None.
        activations: as for :class:`~robustflow.nn.ConditionalFlow`.

    Raises:
        TypeError, ValueError: no layers, something else than layers, a Split before the end, or
            activations that are none of the three.
    """

    def __init__(self, layers: Sequence[nn.Module], activations: Activations = "store") -> None:
        super().__init__()
        check_choice("activations", activations, get_args(Activations))
        check_layers(layers)
        for i, layer in enumerate(layers):
            if isinstance(layer, Split) and i + 1 < len(layers):
                raise ValueError(
                    f"layers[{i}], a Split, must be the last layer of its level: put the layers "
                    "after it into the next level."
                )
        self.layers = nn.ModuleList(layers)
        self.activations = activations

    @property
    def split(self) -> Split | None:
        """The layer that factors out half of the channels, if there is one."""
        last = self.layers[-1]
        return last if isinstance(last, Split) else None

    def output_channels(self, channels: int | None) -> int | None:
        """Channels of z after the last layer, for z of so many; None where no layer knows.

        A layer's ``channels`` are those that it takes and returns. One that changes their number
        says so by a method of this name, as :class:`Squeeze` does.
        """
        for layer in self.layers:
            own: int | None = getattr(layer, "channels", None)
            channels = channels if own is None else own
            change = getattr(layer, "output_channels", None)
            channels = channels if change is None or channels is None else change(channels)
        return channels

    def input_channels(self, channels: int | None) -> int | None:
        """Channels of z before the first layer, for z of so many after the last."""
        for layer in reversed(self.layers):
            change = getattr(layer, "input_channels", None)
            channels = channels if change is None or channels is None else change(channels)
            own: int | None = getattr(layer, "channels", None)
            channels = channels if own is None else own
        return channels

    @property
    def size_multiple(self) -> int:
        """The number of which the sides of z must be multiples.

        A layer with such a requirement has an attribute of this name.
        """
        return math.prod(getattr(layer, "size_multiple", 1) for layer in self.layers)

    @property
    def needs_context(self) -> bool:
        """Whether some layer takes a context, as far as the layers say so."""
        return any(getattr(layer, "context_channels", 0) > 0 for layer in self.layers)

    @property
    def may_take_context(self) -> bool:
        """Whether some layer takes a context or does not say that it takes none."""
        return any(getattr(layer, "context_channels", None) != 0 for layer in self.layers)

    def output_size(self, size: Sequence[int]) -> torch.Size:
        """The spatial size of z after the last layer, for z of this one.

        A layer that changes the size says so by a method of this name.
        """
        for layer in self.layers:
            resize = getattr(layer, "output_size", None)
            size = size if resize is None else resize(size)
        return torch.Size(size)

    def project(self, features: Tensor | Upsampled | None) -> States:
        """What each layer needs of the features, which are None for a level without context.

        Each conditional layer's ``project(features)``; None for a layer whose ``context_channels``
        is 0; the features themselves for a module that does not say. The first layers of the
        default conditioners run as one wide layer, or read :class:`Upsampled` features at their
        own size. With gradients, and activations that are not stored, layers are left to project
        when they run: projections would be kept for each.
        """
        lazy = self.activations != "store" and torch.is_grad_enabled()
        states: list[Any] = [None] * len(self.layers)
        together: dict[tuple[object, ...], dict[int, TwoPartConditioner]] = {}
        alone: list[int] = []
        for index, layer in enumerate(self.layers):
            if features is None or getattr(layer, "context_channels", None) == 0:
                continue
            conditioner = None if lazy else _joinable(layer)
            if conditioner is not None:
                together.setdefault(join_key(conditioner), {})[index] = conditioner
            else:
                alone.append(index)
        for conditioners in together.values():
            assert features is not None
            projected = project_together(list(conditioners.values()), features)
            for index, state in zip(conditioners, projected, strict=True):
                states[index] = state
        if alone:
            whole = features.tensor() if isinstance(features, Upsampled) else features
            assert whole is not None
            for index in alone:
                states[index] = _project_alone(self.layers[index], whole, lazy=lazy)
        return tuple(states)

    def forward(self, z: Tensor, states: States) -> tuple[Tensor, Tensor | None, Tensor]:
        """z -> what goes on, the latent that left (None without a Split), logabsdet (N,)."""
        if self.activations == "reversible" and torch.is_grad_enabled():
            z, logabsdet = run_reversibly(list(self.layers), states, z, _apply)
        else:
            logabsdet = zero_logabsdet(z)
            for layer, state in zip(self.layers, states, strict=True):
                z, change = self._forward_of(layer, z, state)
                logabsdet = logabsdet + change
        if self.split is None:
            return z, None, logabsdet
        return *self.split.divide(z), logabsdet

    def _forward_of(self, layer: nn.Module, z: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        if self.activations == "recompute" and torch.is_grad_enabled():
            out: tuple[Tensor, Tensor] = checkpoint(
                _apply, layer, z, state, inverse=False, use_reentrant=False
            )
            return out
        return _apply(layer, z, state, inverse=False)

    def inverse(self, z: Tensor, latent: Tensor | None, states: States) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` returned -> z, logabsdet (N,) of this direction."""
        if latent is not None:
            z = torch.cat([z, latent], dim=1)
        logabsdet = zero_logabsdet(z)
        for layer, state in zip(reversed(self.layers), reversed(states), strict=True):
            z, change = _apply(layer, z, state, inverse=True)
            logabsdet = logabsdet + change
        return z, logabsdet


def _project_alone(layer: nn.Module, features: Tensor, *, lazy: bool) -> Any:
    """What one layer needs of the features."""
    if not isinstance(layer, ConditionalLayer):
        return features
    return Unprojected(features) if lazy else layer.project(features)


def _joinable(layer: nn.Module) -> TwoPartConditioner | None:
    """The conditioner of a layer whose ``project`` :func:`project_together` can replace."""
    if not isinstance(layer, ConditionalLayer):
        return None
    conditioner = layer.conditioner
    if (
        type(layer).project in (ConditionalLayer.project, Injector.project)
        and isinstance(conditioner, TwoPartConditioner)
        and conditioner.can_join
    ):
        return conditioner
    return None


def _apply(layer: nn.Module, z: Tensor, state: Any, *, inverse: bool) -> tuple[Tensor, Tensor]:
    if isinstance(layer, ConditionalLayer):
        return layer.transform_with(z, projected(layer, state), inverse=inverse)
    return layer(z, state, inverse=inverse)
