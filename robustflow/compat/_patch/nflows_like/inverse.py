"""The inverse of an autoregressive spline layer, which the libraries compute in D passes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from robustflow import ops
from robustflow._transforms import RQ
from robustflow.compat._patch.code import Change, CodeChange, original_of
from robustflow.compat._patch.counts import fell_back, served_rq
from robustflow.compat._patch.nflows_like.fused_autoregressive import FusedAutoregressive
from robustflow.compat._patch.nflows_like.kernels import config_of, logit_scale
from robustflow.compat._patch.nflows_like.made import MadeNetworks
from robustflow.compat._patch.obstacles import in_dtype, tensor_obstacle
from robustflow.compat._patch.own_code import runs_own_code
from robustflow.compat._patch.recognise import (
    COUNT,
    compare,
    normal,
    require_function,
    require_parameters,
)
from robustflow.nn.incremental import call_obstacle, context_obstacle, incremental_inverse
from robustflow.nn.precision import zero_logabsdet

Inverted = tuple[Tensor, Tensor | None]


def autoregressive_changes(library: str, autoregressive: type, made: type) -> list[Change]:
    """The changes of ``forward`` and ``inverse``.

    The library's loops over ``range(np.prod(shape))``, which torch.compile cannot trace. Eager
    calls without gradients compute each unit of the library's own network once. Other calls run
    the network for each feature; they are counted, and logged with the reason. Layers without a
    spline inherit the same method and keep the library's.

    Args:
        library: for messages and counts.
        autoregressive: its spline layer.
        made: its class of masked networks.
    """
    owner = next(each for each in autoregressive.__mro__ if "inverse" in vars(each))
    method = require_function(library, owner, "inverse")
    require_parameters(library, method, ("self", "inputs", "context"))
    original = original_of(method)
    networks = MadeNetworks(library, made)
    incremental = _Incremental(library, autoregressive, made, networks)
    fused = FusedAutoregressive(library, autoregressive, networks)

    def inverse(self: Any, inputs: Tensor, context: Tensor | None) -> Inverted:
        if torch.compiler.is_compiling():
            return _passes(self, inputs, context)
        if isinstance(self, autoregressive) and not runs_own_code():
            in_one_call = fused.result(self, inputs, context, True)
            if in_one_call is not None:
                return in_one_call
            found = incremental.inverse(self, inputs, context)
            if not isinstance(found, str):
                return found
            fell_back(library, f"{autoregressive.__name__}.inverse", found)
        return original(self, inputs, context)

    layer = SimpleNamespace(
        autoregressive_net=lambda outputs, _: outputs.cumsum(-1),
        _elementwise_inverse=lambda inputs, params: (inputs - params.sin(), params.sum(-1)),
    )
    compare(library, f"{owner.__name__}.inverse", original, _passes, layer, normal(COUNT, 3), None)
    return [*fused.forward_changes(), CodeChange(method, inverse)]


def _passes(layer: Any, inputs: Tensor, context: Tensor | None) -> Inverted:
    """What the library computes, in a loop that torch.compile can trace."""
    outputs, logabsdet = torch.zeros_like(inputs), None
    for _ in range(math.prod(inputs.shape[1:])):
        params = layer.autoregressive_net(outputs, context)
        outputs, logabsdet = layer._elementwise_inverse(inputs, params)
    return outputs, logabsdet


class _Incremental:
    """Inverses that compute each unit of the library's own network once."""

    def __init__(self, library: str, layer_class: type, made: type, networks: MadeNetworks) -> None:
        self._library = library
        self._layer_class = layer_class
        self._made = made
        self._networks = networks

    def inverse(
        self, layer: Any, inputs: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor] | str:
        """A layer's inverse, or why it takes passes."""
        obstacle = self._obstacle(layer, inputs, context)
        if obstacle is not None:
            return obstacle
        network = self._networks.planned(layer.autoregressive_net, inputs.shape[1], context)
        if isinstance(network, str):
            return network
        scale = logit_scale(layer.autoregressive_net, ("hidden_features",))
        if scale is None:
            return "its network's hidden_features is no number"
        num_bins, num_params = layer.num_bins, network.plan.num_params
        config = config_of(
            layer, num_bins, True, layer.tails, layer.tail_bound, num_params, scale, "sum", 2
        )
        if config is None:
            return "the kernels do not support its settings"
        logabsdet = zero_logabsdet(inputs)

        def invert(y: Tensor, params: Tensor) -> Tensor:
            by = served_rq(self._library, y, num_bins)
            x, change = ops.of(RQ).apply(y, params, None, None, None, *config, by=by)
            logabsdet.add_(change)
            return x

        outputs = incremental_inverse(network, inputs, invert)
        return outputs, in_dtype(logabsdet, inputs.dtype)

    def _obstacle(self, layer: Any, inputs: Tensor, context: Tensor | None) -> str | None:
        network = layer.autoregressive_net
        kind, network_class = type(layer), type(network)
        if kind is not self._layer_class:
            return "a subclass may compute otherwise"
        if network_class is not self._made:
            return "its network is not the library's own"
        if inputs.dim() != 2:
            return "its input is not one row for each sample"
        if obstacle := context_obstacle(context, len(inputs)):
            return obstacle
        if layer.tails not in ("linear", "circular") or isinstance(layer.tail_bound, Tensor):
            return "its tails or bounds belong to single features, or there are none"
        contexts = [] if context is None else [context]
        return call_obstacle(inputs, *network.parameters(), *contexts) or tensor_obstacle(inputs)
