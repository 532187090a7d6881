"""The inverse of nflows' and normflows' autoregressive layers, each unit of MADE computed once.

The libraries' MADEs have the same parts, combined differently: whether the context passes through
the activation, is added to a residual block or gates it, and whether plain blocks begin with an
activation. Small networks tell which it is when the library is patched.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow.compat._patch.counts import logger
from robustflow.compat._patch.recognise import normal, refusals
from robustflow.fused import Builder, Parameters, Program, Watch
from robustflow.nn.incremental import (
    ELEMENTWISE,
    Add,
    Gate,
    Masked,
    Operation,
    PlannedNetwork,
    Planner,
    module_obstacle,
    run_network,
)

_FUNCTIONS = frozenset(
    {
        functional.celu,
        functional.elu,
        functional.gelu,
        functional.hardswish,
        functional.leaky_relu,
        functional.logsigmoid,
        functional.mish,
        functional.relu,
        functional.selu,
        functional.silu,
        functional.softplus,
        functional.tanh,
        functional.sigmoid,
        torch.relu,
        torch.sigmoid,
        torch.tanh,
    }
)


class Convention(NamedTuple):
    """How a library combines the parts of a MADE."""

    context_is_activated: bool  # before it is added to the first layer
    context_gates_blocks: bool  # rather than being added within residual ones
    plain_begin_activated: bool  # without residual blocks


_EVERY = tuple(Convention(*choice) for choice in itertools.product((False, True), repeat=3))


class MadeNetworks:
    """A library's masked networks as operations, and their plans.

    Args:
        library: for messages.
        made: its class of masked networks.
    """

    def __init__(self, library: str, made: type[nn.Module]) -> None:
        self._made = made
        # By (residual blocks or not, context or not). A string says why there is none.
        self._conventions = {
            (residual, context): self._find_convention(residual, context)
            for residual in (False, True)
            for context in (False, True)
        }
        for (residual, context), found in self._conventions.items():
            if isinstance(found, str):
                logger.debug(
                    "%s: inverses with %s blocks and %s context run the network once for each "
                    "feature, since %s.",
                    library,
                    "residual" if residual else "plain",
                    "a" if context else "no",
                    found,
                )
        self._planner = Planner()

    def planned(
        self, network: nn.Module, features: int, context: Tensor | None
    ) -> PlannedNetwork | str:
        """The network's operations and plan, or why they are not known."""
        convention = self._conventions[_is_residual(network), context is not None]
        if isinstance(convention, str):
            return convention
        obstacle = _obstacle(network)
        if obstacle is not None:
            return obstacle
        if _drops_out(network):
            return "dropout is on"
        operations = _operations(network, context, convention)
        return self._planner.plan(network, operations, features)

    def describe(
        self, network: Any, watch: Watch, parameters: Parameters, with_context: bool
    ) -> Program | str:
        """A network's program for one call of C++; or why it has none, as a clause."""
        if type(network) is not self._made:
            return "its network is not the library's own"
        convention = self._conventions[_is_residual(network), with_context]
        if isinstance(convention, str):
            return convention
        if obstacle := _obstacle(network):
            return obstacle
        return _program(network, watch, parameters, with_context, convention)

    def _find_convention(self, residual: bool, with_context: bool) -> Convention | str:
        """The convention that a small random network agrees with; or why none does."""
        try:
            network = self._made(
                features=3,
                hidden_features=8,
                context_features=2 if with_context else None,
                output_multiplier=2,
                use_residual_blocks=residual,
                activation=torch.tanh,  # applied twice it is another function
            ).double()
            for seed, parameter in enumerate(network.parameters()):
                parameter.copy_(normal(*parameter.shape, seed=seed))
            x, context = normal(5, 3, seed=100), normal(5, 2, seed=101) if with_context else None
            expected = network(x, context)
            if obstacle := _obstacle(network):
                return obstacle
            for convention in _EVERY:
                operations = _operations(network, context, convention)
                if torch.allclose(run_network(operations, x), expected):
                    return convention
        except refusals(self._made.__init__) as error:
            return f"a small one of the library's raised {error!r}"
        return "robustflow does not know how the library puts them together"


def _is_residual(network: Any) -> bool:
    return any(hasattr(block, "linear_layers") for block in network.blocks)


def _drops_out(network: Any) -> bool:
    return any(block.dropout.training and block.dropout.p > 0 for block in network.blocks)


def _obstacle(network: Any) -> str | None:
    """Why a part is unknown, or mixes samples or units, as batch norm does."""
    linear, blocks = type(network.initial_layer), list(network.blocks)
    allowed = (linear, nn.Linear, nn.ModuleList, nn.Dropout, type(network), *map(type, blocks))
    if not blocks:
        return "its network has no blocks"
    if obstacle := module_obstacle(network.modules(), *allowed):
        return obstacle
    if not isinstance(getattr(network, "preprocessing", None), (nn.Identity, type(None))):
        return "its network preprocesses the input"
    activation = blocks[0].activation
    every = (getattr(network, "activation", activation), *(block.activation for block in blocks))
    if any(each is not activation for each in every):
        return "its parts differ in their activation"
    if not (type(activation) in ELEMENTWISE or activation in _FUNCTIONS):
        return "its activation is none that is known to be elementwise"
    return None


def _operations(network: Any, context: Tensor | None, convention: Convention) -> list[Operation]:
    """The operations of a network without an obstacle."""
    activation = network.blocks[0].activation
    first = _masked(network.initial_layer)
    if context is not None:
        offset = network.context_layer(context)
        offset = activation(offset) if convention.context_is_activated else offset
        first = first._replace(offset=offset)
    operations: list[Operation] = [first]
    residual = _is_residual(network)
    if not residual and convention.plain_begin_activated:
        operations.append(activation)
    for block in network.blocks:
        if not residual:
            operations += [_masked(block.linear), activation]
            continue
        start = len(operations)
        first, second = (_masked(layer) for layer in block.linear_layers)
        own = None if context is None else block.context_layer(context)
        if own is not None and not convention.context_gates_blocks:
            first = first._replace(offset=own)
        operations += [activation, first, activation, second]
        if own is not None and convention.context_gates_blocks:
            operations.append(Gate(own))
        operations.append(Add(start))
    operations.append(_masked(network.final_layer))
    return operations


def _program(
    network: Any, watch: Watch, parameters: Parameters, with_context: bool, convention: Convention
) -> Program | str:
    """The same operations, for :mod:`robustflow.fused`."""
    for module in network.modules():
        watch.module(module)
    blocks = list(network.blocks)
    activation = watch.activation(
        blocks[0]._modules.get("activation") or watch.setting(blocks[0], "activation")
    )
    if activation is None:
        return "its activation is none of those that are known"
    for block in blocks:
        watch.setting(block, "activation")
        watch.dropout(block.dropout)
    context = network.context_layer.in_features if with_context else 0
    builder = Builder(network.initial_layer.in_features, context)

    def add_context(node: int, layer: Any, activated: bool = False) -> int:
        own = parameters.linear(builder, builder.context, layer)
        return builder.sum(node, builder.activation(own, activation) if activated else own)

    node = parameters.linear(builder, builder.features, network.initial_layer)
    if with_context:
        node = add_context(node, network.context_layer, convention.context_is_activated)
    residual = _is_residual(network)
    if not residual and convention.plain_begin_activated:
        node = builder.activation(node, activation)
    for block in blocks:
        if not residual:
            node = parameters.linear(builder, node, block.linear)
            node = builder.activation(node, activation)
            continue
        first, second = block.linear_layers
        inner = parameters.linear(builder, builder.activation(node, activation), first)
        if with_context and not convention.context_gates_blocks:
            inner = add_context(inner, block.context_layer)
        inner = parameters.linear(builder, builder.activation(inner, activation), second)
        if with_context and convention.context_gates_blocks:
            logits = parameters.linear(builder, builder.context, block.context_layer)
            inner = builder.gate(inner, logits)
        node = builder.sum(node, inner)
    parameters.linear(builder, node, network.final_layer)
    return builder.program()


def _masked(layer: Any) -> Masked:
    return Masked(layer.weight, layer.bias, layer.mask)
