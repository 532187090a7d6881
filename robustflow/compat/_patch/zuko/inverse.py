"""The inverse of zuko's autoregressive layers, each unit of their network computed once.

zuko runs the whole network ``passes`` times. The inverse of a fused layer is one call
(``fused_layers``). This serves the other layers whose network is zuko's MaskedMLP and whose
univariate transform is the spline. Else, and if gradients are wanted, zuko's own loop runs, with
the kernels for its splines.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from robustflow.compat._patch.code import Change, CodeChange, original_of
from robustflow.compat._patch.counts import fell_back
from robustflow.compat._patch.obstacles import broadcasts_to
from robustflow.compat._patch.own_code import runs_own_code
from robustflow.compat._patch.recognise import require_function, require_parameters
from robustflow.compat._patch.zuko.direct import DirectLayers
from robustflow.nn.incremental import (
    Add,
    Masked,
    Operation,
    PlannedNetwork,
    Planner,
    call_obstacle,
    incremental_inverse,
    module_obstacle,
)

Invert = Callable[[Any, Tensor, Tensor], Tensor]


def inverse_change(
    library: str,
    transforms: ModuleType,
    layers: ModuleType,
    networks: ModuleType,
    direct: DirectLayers,
    invert: Invert,
    fused: Callable[[Any, Tensor], Tensor | None],
) -> Change:
    """The change of ``AutoregressiveTransform._inverse``.

    Args:
        library: for messages.
        transforms, layers, networks: ``zuko.transforms``, ``zuko.flows.autoregressive``,
            ``zuko.nn``.
        direct: layers whose univariate transform is the spline.
        invert: ``invert(univariate, y, params)`` for packed parameters.
        fused: ``fused(transform, y)``, the inverse in one call, or None where there is none.
    """
    method = require_function(library, transforms.AutoregressiveTransform, "_inverse")
    require_parameters(library, method, ("self", "y"))
    original = original_of(method)
    layer_class = layers.MaskedAutoregressiveTransform
    incremental = _Incremental(layer_class, networks, invert)

    def inverse(self: Any, y: Tensor) -> Tensor:
        if not (torch.compiler.is_compiling() or runs_own_code()):
            in_one_call = fused(self, y)
            if in_one_call is not None:
                return in_one_call
            layer = _layer_of(self)
            if isinstance(layer, layer_class) and layer in direct:
                found = incremental.inverse(self, layer, y)
                if not isinstance(found, str):
                    return found
                fell_back(library, "AutoregressiveTransform._inverse", found)
        return original(self, y)

    return CodeChange(method, inverse)


def _layer_of(transform: Any) -> Any:
    """The layer that made an AutoregressiveTransform, or None."""
    meta = transform.meta
    return getattr(meta.func, "__self__", None) if type(meta) is partial else None


class _Incremental:
    """Inverses that compute each unit of zuko's own network once."""

    def __init__(self, layer_class: type, networks: ModuleType, invert: Invert) -> None:
        self._layer_class = layer_class
        self._network_class = networks.MaskedMLP
        self._networks = Networks(networks)
        self._invert = invert

    def inverse(self, transform: Any, layer: Any, y: Tensor) -> Tensor | str:
        """A transform's inverse, or why it takes passes."""
        obstacle = self._obstacle(transform, layer, y)
        if obstacle is not None:
            return obstacle
        (context,) = transform.meta.args
        if context is not None:
            context = context.expand(*y.shape[:-1], -1).reshape(-1, context.shape[-1])
        context_features = 0 if context is None else context.shape[-1]
        network = self._networks.planned(layer.hyper, y.shape[-1], context_features)
        if isinstance(network, str):
            return network
        if len(network.plan.features) > transform.passes:
            return "it takes fewer passes than its order has steps"
        rows = y.reshape(-1, y.shape[-1])
        invert = partial(self._invert, layer.univariate)
        return incremental_inverse(network, rows, invert, context).view(y.shape)

    def _obstacle(self, transform: Any, layer: Any, y: Tensor) -> str | None:
        meta, kind, network_class = transform.meta, type(layer), type(layer.hyper)
        if (
            kind is not self._layer_class
            or meta.func.__func__ is not vars(self._layer_class)["meta"]
            or len(meta.args) != 1
            or meta.keywords
        ):
            return "a subclass may compute otherwise"
        if network_class is not self._network_class:
            return "its network is not the library's own"
        if not _same_for_all(layer.univariate):
            return "settings of its splines belong to single features"
        (context,) = meta.args
        contexts = [] if context is None else [context]
        if obstacle := call_obstacle(y, *layer.hyper.parameters(), *contexts):
            return obstacle
        if context is not None and not broadcasts_to(context[..., 0], y[..., 0]):
            return "its context does not broadcast to the input"
        return None


def _same_for_all(univariate: Any) -> bool:
    """Whether a partial's settings are the same for all features."""
    while type(univariate) is partial:
        if any(isinstance(each, Tensor) and each.dim() for each in univariate.keywords.values()):
            return False
        univariate = univariate.func
    return True


class Networks:
    """The operations of zuko's masked networks, and their plans."""

    def __init__(self, module: ModuleType) -> None:
        self._network: type[nn.Module] = module.MaskedMLP
        self._linear: type[nn.Linear] = module.MaskedLinear
        self._residual: type[nn.Module] = module.Residual
        self._planner = Planner()

    def planned(
        self, network: nn.Module, features: int, context_features: int
    ) -> PlannedNetwork | str:
        """A network's operations and plan, or why they are not known."""
        _, *parts = network.modules()
        obstacle = module_obstacle([network], self._network) or module_obstacle(
            parts, self._linear, self._residual
        )
        if obstacle is not None:
            return obstacle
        operations: list[Operation] = []
        self._collect(network, operations)
        return self._planner.plan(network, operations, features, context_features)

    def _collect(self, network: nn.Module, operations: list[Operation]) -> None:
        """Append those of a Sequential."""
        for module in network._modules.values():  # one that is used twice, too
            assert module is not None
            if isinstance(module, self._linear):
                mask = module.get_buffer("mask")
                operations.append(Masked(module.weight, module.bias, mask))
            elif isinstance(module, self._residual):
                start = len(operations)
                self._collect(module, operations)
                operations.append(Add(start))
            else:
                operations.append(module)
