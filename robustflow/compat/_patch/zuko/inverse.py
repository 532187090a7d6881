"""The inverse of zuko's autoregressive layers, each unit of their network computed once.

zuko runs the whole network ``passes`` times. This serves layers whose network is zuko's MaskedMLP
and whose univariate transform is the spline. For others, and if gradients are wanted, zuko's own
loop runs, with the kernels for its splines.
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
from robustflow.nn._in_order import (
    Add,
    Masked,
    NotInOrder,
    Operation,
    Plan,
    Plans,
    check_can_run,
    check_plain,
    invert_in_order,
)

Invert = Callable[[Any, Tensor, Tensor], Tensor]


def in_order_change(
    library: str,
    transforms: ModuleType,
    layers: ModuleType,
    networks: ModuleType,
    is_direct: Callable[[Any], bool],
    invert: Invert,
) -> Change:
    """The change of ``AutoregressiveTransform._inverse``.

    Args:
        library: for messages.
        transforms, layers, networks: ``zuko.transforms``, ``zuko.flows.autoregressive``,
            ``zuko.nn``.
        is_direct: whether a layer's univariate transform is the spline.
        invert: ``invert(univariate, y, params)`` for packed parameters.
    """
    method = require_function(library, transforms.AutoregressiveTransform, "_inverse")
    require_parameters(library, method, ("self", "y"))
    original = original_of(method)
    known = Networks(networks)
    layer_class = layers.MaskedAutoregressiveTransform

    def spline_layer(self: Any) -> Any:
        """The layer, if its univariate transform is a spline that the kernels invert, else None."""
        meta = self.meta
        layer = getattr(meta.func, "__self__", None) if type(meta) is partial else None
        return layer if isinstance(layer, layer_class) and is_direct(layer) else None

    def in_order(self: Any, layer: Any, y: Tensor) -> Tensor:
        meta = self.meta
        if (
            type(layer) is not layer_class
            or meta.func.__func__ is not vars(layer_class)["meta"]
            or len(meta.args) != 1
            or meta.keywords
        ):
            raise NotInOrder("a subclass may compute otherwise")
        if type(layer.hyper) is not networks.MaskedMLP:
            raise NotInOrder("its network is not the library's own")
        if not _same_for_all(layer.univariate):
            raise NotInOrder("settings of its splines belong to single features")
        context = meta.args[0]
        check_can_run(y, *layer.hyper.parameters(), *([] if context is None else [context]))
        if context is not None:
            if not broadcasts_to(context[..., 0], y[..., 0]):
                raise NotInOrder("its context does not broadcast to the input")
            context = context.expand(*y.shape[:-1], -1).reshape(-1, context.shape[-1])
        ready = known.find(layer.hyper, y.shape[-1], 0 if context is None else context.shape[-1])
        if len(ready[0].features) > self.passes:
            raise NotInOrder("it takes fewer passes than its order has steps")
        rows = y.reshape(-1, y.shape[-1])
        x = invert_in_order(*ready, rows, partial(invert, layer.univariate), context)
        return x.view(y.shape)

    def call(self: Any, y: Tensor) -> Tensor:
        if not (torch.compiler.is_compiling() or runs_own_code()):
            layer = spline_layer(self)
            if layer is not None:
                try:
                    return in_order(self, layer, y)
                except NotInOrder as reason:
                    fell_back(library, "AutoregressiveTransform._inverse", str(reason))
        return original(self, y)

    return CodeChange(method, call)


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
        self._plans = Plans()

    def find(
        self, network: nn.Module, features: int, context_features: int
    ) -> tuple[Plan, list[Operation]]:
        """A network's plan and operations.

        Raises:
            NotInOrder: the network is another, is watched, or does not fit the order.
        """
        _, *parts = network.modules()
        check_plain([network], self._network)
        check_plain(parts, self._linear, self._residual)
        operations: list[Operation] = []
        self._collect(network, operations)
        return self._plans.of(network, operations, features, context_features), operations

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
