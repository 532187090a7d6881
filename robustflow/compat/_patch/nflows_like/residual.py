"""nflows' and normflows' ``ResidualNet``, described for :mod:`robustflow.fused`.

A network is recognised by its parts: its class is the one that was probed when the library was
patched, and a small one of that class computed what its description does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from robustflow.compat._patch.recognise import normal, refusals
from robustflow.fused import Builder, Parameters, Program, Watch, run_program


class ResidualNets:
    """A library's residual networks.

    Args:
        network: the class.
    """

    def __init__(self, network: type[nn.Module]) -> None:
        self._network = network
        self._block: type | None = None
        # By whether there is a context: why they are not known, or None.
        self.obstacles = {context: self._probe(context) for context in (False, True)}

    def describe(
        self, network: Any, watch: Watch, parameters: Parameters, with_context: bool
    ) -> Program | str:
        """A network's program; or why it has none, as a clause."""
        if type(network) is not self._network:
            return f"its network is a {type(network).__name__}"
        obstacle = self.obstacles[with_context]
        return obstacle or self._describe(network, watch, parameters, with_context)

    def _describe(
        self, network: Any, watch: Watch, parameters: Parameters, with_context: bool
    ) -> Program | str:
        linear = [network.initial_layer, network.final_layer]
        for block in network.blocks:
            kind = type(block)
            if kind is not self._block:
                return f"its network has a {kind.__name__}"
            if block.use_batch_norm:
                return "its network has batch norm"
            if with_context != hasattr(block, "context_layer"):
                return "its network is with or without context, and the call is not"
            linear += block.linear_layers
            linear += [block.context_layer] if with_context else []
        if any(type(layer) is not nn.Linear for layer in linear):
            return "its network has layers that are not linear"
        if getattr(network, "preprocessing", None) is not None:
            return "its network preprocesses the input"
        for module in (network, network.blocks, *network.blocks, *linear):
            watch.module(module)
        if hasattr(network, "preprocessing"):
            watch.setting(network, "preprocessing")

        first = network.initial_layer
        extra = (
            network.blocks[0].context_layer.in_features if with_context and network.blocks else 0
        )
        builder = Builder(first.in_features - extra, extra)
        node = parameters.linear(builder, builder.both, first)
        for block in network.blocks:
            watch.module(block.linear_layers)
            watch.dropout(block.dropout)
            watch.setting(block, "use_batch_norm")
            activation = watch.activation(
                block._modules.get("activation") or watch.setting(block, "activation")
            )
            if activation is None:
                return "its activation is none of those that are known"
            inner = node
            for layer in block.linear_layers:
                inner = builder.activation(inner, activation)
                inner = parameters.linear(builder, inner, layer)
            if with_context:
                logits = parameters.linear(builder, builder.context, block.context_layer)
                inner = builder.gate(inner, logits)
            node = builder.sum(node, inner)
        parameters.linear(builder, node, network.final_layer)
        return builder.program()

    def _probe(self, with_context: bool) -> str | None:
        """Whether a small network computes what its description says."""
        try:
            network: Any = self._network(
                2,
                3,
                hidden_features=4,
                context_features=2 if with_context else None,
                num_blocks=2,
                activation=torch.tanh,
            ).double()
            self._block = type(network.blocks[0])
            for seed, parameter in enumerate(network.parameters()):
                parameter.copy_(normal(*parameter.shape, seed=seed))
            x, context = normal(5, 2, seed=100), normal(5, 2, seed=101) if with_context else None
            wanted = network(x, context)
            parameters = Parameters()
            program = self._describe(network, Watch(), parameters, with_context)
            if isinstance(program, str):
                return program
            found = run_program(program, x, context, parameters.now(), parameters.masks())  # type: ignore[arg-type]
        except refusals(self._network.__init__) as error:
            return f"a small network of the library's raised {error!r}"
        if found.shape != wanted.shape or not torch.allclose(found, wanted):
            return "robustflow does not know how the library puts its network together"
        return None
