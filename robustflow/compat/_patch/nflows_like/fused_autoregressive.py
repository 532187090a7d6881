"""The autoregressive layers of nflows, its copies, and normflows, each in one call.

As :mod:`robustflow.compat._patch.nflows_like.fused_layers` does it with couplings. The inverse
computes each unit of the network once, and has no gradients: where they are wanted, the library's
passes run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustflow._by_identity import ByIdentity
from robustflow._transforms import RQ
from robustflow.compat._patch.code import Change, CodeChange, original_of
from robustflow.compat._patch.counts import served_fused, served_unfused
from robustflow.compat._patch.nflows_like.fused_layers import (
    Transformed,
    both_configs,
    same_settings,
    settings_of,
)
from robustflow.compat._patch.nflows_like.kernels import logit_scale
from robustflow.compat._patch.nflows_like.made import MadeNetworks
from robustflow.compat._patch.own_code import runs_own_code
from robustflow.compat._patch.recognise import require_function, require_parameters
from robustflow.fused import (
    FusedCall,
    FusedLayer,
    Parameters,
    Watch,
    call_obstacle,
    find_order,
    fused_layer,
    is_available,
)


class _Plan(NamedTuple):
    """What is known of a layer, for as long as it holds."""

    call: FusedCall
    settings: tuple[Any, ...]
    with_context: bool


def _logit_scale(layer: Any) -> float | None:
    """As the library reads it at each call; its MADE does not say how many units it has."""
    return logit_scale(layer.autoregressive_net, ("hidden_features",))


class FusedAutoregressive:
    """The two directions of a library's autoregressive spline layers, each in one call.

    Args:
        library: for counts and messages.
        layer_class: its spline layer.
        networks: its masked networks.
    """

    def __init__(self, library: str, layer_class: type, networks: MadeNetworks) -> None:
        self._library = library
        self._layer_class = layer_class
        self._networks = networks
        self._plans = ByIdentity[_Plan]()

    def forward_changes(self) -> list[Change]:
        """The change of ``forward``, which other autoregressive layers inherit too."""
        if not is_available():
            return []
        owner = next(each for each in self._layer_class.__mro__ if "forward" in vars(each))
        method = require_function(self._library, owner, "forward")
        require_parameters(self._library, method, ("self", "inputs", "context"))
        original = original_of(method)

        def forward(self: Any, inputs: Tensor, context: Tensor | None) -> Transformed:
            if not torch.compiler.is_compiling() and not runs_own_code():
                result = result_of(self, inputs, context, False)
                if result is not None:
                    return result
            transformed: Transformed = original(self, inputs, context)
            return transformed

        result_of = self.result
        return [CodeChange(method, forward)]

    def result(
        self, layer: Any, inputs: Tensor, context: Tensor | None, inverse: bool
    ) -> Transformed | None:
        """The layer in one call; None where it is not one.

        Its caller has seen that nothing is compiled and that the library's own code does not run.
        """
        if type(layer) is not self._layer_class or not is_available():
            return None
        result = self._serve(layer, inputs, context, inverse)
        if not isinstance(result, str):
            served_fused(self._library, 1)
            return result
        direction = "inverse" if inverse else "forward"
        served_unfused(self._library, f"{self._layer_class.__name__}.{direction}", result)
        return None

    def _serve(
        self, layer: Any, inputs: Tensor, context: Tensor | None, inverse: bool
    ) -> Transformed | str:
        if obstacle := call_obstacle():
            return obstacle
        plan, with_context = self._plans.get(layer), context is not None
        settings = (_logit_scale(layer), *settings_of(layer))
        if (
            plan is None
            or plan.with_context is not with_context
            or not same_settings(plan.settings, settings)
            or plan.call.is_outdated()
        ):
            watch, parameters = Watch(), Parameters()
            watch.module(layer)
            described = self._describe(layer, watch, parameters, with_context)
            call = FusedCall(described, layer.num_bins, watch, parameters)
            plan = _Plan(call, settings, with_context)
            self._plans.set(layer, plan)
        if context is not None and context.dim() == 2 and len(context) == 1:
            context = context.expand(len(inputs), -1)  # MADE adds one row to all
        return plan.call(inverse, inputs, context)

    def _describe(
        self, layer: Any, watch: Watch, parameters: Parameters, with_context: bool
    ) -> FusedLayer | str:
        network = layer.autoregressive_net
        program = self._networks.describe(network, watch, parameters, with_context)
        if isinstance(program, str):
            return program
        scale = _logit_scale(layer)
        if scale is None:
            return "its network's hidden_features is no number"
        features = program.features
        num_params = program.outputs // features
        if num_params * features != program.outputs:
            return "its network has another number of parameters"
        if layer.tails not in ("linear", "circular") or isinstance(layer.tail_bound, Tensor):
            return "its tails or bounds belong to single features, or there are none"
        configs = both_configs(layer, num_params, scale)
        if configs is None:
            return "the kernels do not support its settings"
        every = tuple(range(features))
        order = find_order(program, parameters.masks())
        return program.obstacle or fused_layer(
            program, features, every, every, num_params, configs, None, RQ.name, order
        )
