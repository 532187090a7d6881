"""The inverse of zuko's autoregressive layers, each unit of their network computed once.

zuko runs the whole network ``passes`` times. This serves layers whose network is zuko's MaskedMLP
and whose univariate transform is the spline. Of all others, and wherever gradients are wanted,
zuko's own loop runs, on the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from robustflow.compat._calls import broadcasts_to, runs_own_code
from robustflow.compat._code import Change, CodeChange, original_of
from robustflow.compat._probe import require_function, require_parameters
from robustflow.nn._in_order import (
    Add,
    Masked,
    Operation,
    Plan,
    Plans,
    can_run,
    invert_in_order,
    is_plain,
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

    def in_order(self: Any, y: Tensor) -> Tensor | None:
        meta = self.meta
        if type(meta) is not partial or len(meta.args) != 1 or meta.keywords:
            return None
        bound: Any = meta.func
        layer: Any = getattr(bound, "__self__", None)
        if type(layer) is not layer_class or bound.__func__ is not vars(layer_class)["meta"]:
            return None
        if type(layer.hyper) is not networks.MaskedMLP or not _same_for_all(layer.univariate):
            return None
        context = meta.args[0]
        tensors = [y, *layer.hyper.parameters(), *([] if context is None else [context])]
        if not can_run(*tensors) or not is_direct(layer):
            return None
        if context is not None:
            if not broadcasts_to(context[..., 0], y[..., 0]):
                return None
            context = context.expand(*y.shape[:-1], -1).reshape(-1, context.shape[-1])
        ready = known.find(layer.hyper, y.shape[-1], 0 if context is None else context.shape[-1])
        if ready is None or len(ready[0].features) > self.passes:
            return None
        rows = y.reshape(-1, y.shape[-1])
        x = invert_in_order(*ready, rows, partial(invert, layer.univariate), context)
        return x.view(y.shape)

    def call(self: Any, y: Tensor) -> Tensor:
        own = torch.compiler.is_compiling() or runs_own_code()
        found = None if own else in_order(self, y)
        return original(self, y) if found is None else found

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
    ) -> tuple[Plan, list[Operation]] | None:
        """None where the network is another, is watched, or does not fit the order."""
        if type(network) is not self._network:
            return None
        _, *parts = network.modules()
        if not is_plain([network], self._network):
            return None
        if not is_plain(parts, self._linear, self._residual):
            return None
        operations: list[Operation] = []
        self._collect(network, operations)
        plan = self._plans.of(network, operations, features, context_features)
        return None if plan is None else (plan, operations)

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
