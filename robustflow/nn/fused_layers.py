"""Couplings and autoregressive layers over (N, D), fused into one call: :mod:`robustflow.fused`.

Served are the default conditioners with a :class:`ModifiedRQSpline`, or an :class:`RQSpline` that
treats all features alike. Other layers and calls run unfused, with the same results to rounding;
the logger ``robustflow.nn`` says why at debug level.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustflow._by_identity import ByIdentity
from robustflow._transforms import MODIFIED_RQ, RQ
from robustflow.fused import (
    Builder,
    FusedCall,
    FusedLayer,
    Parameters,
    Program,
    Watch,
    call_obstacle,
    find_order,
    fused_layer,
    is_available,
)
from robustflow.nn.elementwise import ModifiedRQSpline, RQSpline

_log = logging.getLogger("robustflow.nn")


class _Plan(NamedTuple):
    """What is known of a layer, for as long as it has this transform, and this kind of calls."""

    call: FusedCall
    transform: Any
    with_state: bool


class FusedRequest(NamedTuple):
    """What a layer asks to have done in one call.

    Attributes:
        layer: with ``conditioner``, ``transform`` and ``channels``.
        read, changed: features that the conditioner reads, and that are transformed.
        conditioner, linear: the conditioner's class and that of its linear layers.
    """

    layer: Any
    read: Sequence[int]
    changed: Sequence[int]
    conditioner: type
    linear: type


_plans = ByIdentity[_Plan]()


def transform_fused(
    request: FusedRequest, z: Tensor, state: Any, inverse: bool
) -> tuple[Tensor, Tensor] | None:
    """A layer in one call; None where it is not one.

    Args:
        request: the layer.
        z: (N, D).
        state: what the conditioner's ``project`` returned, (N or 1, hidden), or None.
        inverse: the direction; that of an autoregressive layer has no gradients.
    """
    if torch.compiler.is_compiling() or not is_available():
        return None
    result = _serve(request, z, state, inverse)
    if not isinstance(result, str):
        return result
    _log.debug("%s: it is not fused, since %s.", type(request.layer).__name__, result)
    return None


def _serve(
    request: FusedRequest, z: Tensor, state: Any, inverse: bool
) -> tuple[Tensor, Tensor] | str:
    if z.dim() != 2:
        return "z is not one row for each sample"
    if obstacle := call_obstacle():
        return obstacle
    layer, with_state = request.layer, state is not None
    plan = _plans.get(layer)
    if (
        plan is None
        or plan.transform is not layer.transform
        or plan.with_state is not with_state
        or plan.call.is_outdated()
    ):
        watch, parameters = Watch(), Parameters()
        watch.module(layer)
        described = _describe(request, with_state, watch, parameters)
        num_bins = layer.transform.num_bins if _is_rq(layer) else 0
        call = FusedCall(described, num_bins, watch, parameters)
        plan = _Plan(call, layer.transform, with_state)
        _plans.set(layer, plan)
    if with_state and len(state) != len(z):
        if state.dim() != 2 or len(state) != 1:
            return "the context does not fit z"
        state = state.expand(len(z), -1)
    return plan.call(inverse, z, state)


def _is_rq(layer: Any) -> bool:
    return type(layer.transform) is RQSpline


def _describe(
    request: FusedRequest, with_state: bool, watch: Watch, parameters: Parameters
) -> FusedLayer | str:
    layer = request.layer
    transform = layer.transform
    configs: list[tuple[Any, ...]] = []
    for inverse in (False, True):
        if type(transform) is ModifiedRQSpline:
            settings = (transform.interval, transform.min_bin, transform.min_derivative)
            config = MODIFIED_RQ.config(inverse, *settings, transform.derivative, "sum", 2)
        elif _is_rq(layer) and transform.channels is None and transform.tails is not None:
            minima = (transform.min_bin_width, transform.min_bin_height, transform.min_derivative)
            config = RQ.config(
                transform.num_bins,
                inverse,
                transform.tails,
                transform.parametrization,
                transform.tail_bound,
                *minima,
                1.0,
                "sum",
                2,
            )
        else:
            return "its transform is none of those that are known, or tells the features apart"
        configs.append(config)
    program = _program(request, with_state, watch, parameters)
    if isinstance(program, str):
        return program
    if program.outputs != len(request.changed) * transform.num_params:
        return "its conditioner makes another number of parameters"
    autoregressive = len(request.changed) == layer.channels
    return program.obstacle or fused_layer(
        program,
        layer.channels,
        tuple(request.read),
        tuple(request.changed),
        transform.num_params,
        tuple(configs),
        None,
        (RQ if _is_rq(layer) else MODIFIED_RQ).name,
        find_order(program, parameters.masks()) if autoregressive else None,
    )


def _program(
    request: FusedRequest, with_state: bool, watch: Watch, parameters: Parameters
) -> Program | str:
    """The conditioner, from its features and the projected context to the parameters."""
    conditioner = request.layer.conditioner
    kind: Any = type(conditioner)
    if kind is not request.conditioner or conditioner.z_layer is None:
        return "its conditioner is not the default one"
    if conditioner.z_features is not None:
        return "its conditioner reads features on circles"
    if with_state != (conditioner.context_layer is not None):
        return "its context is missing, or has no part in it"
    watch.module(conditioner)
    if type(conditioner.trunk) is not nn.Sequential:
        return "layers of its conditioner were replaced"
    watch.module(conditioner.trunk)
    width = conditioner.z_layer.weight.shape[0]
    builder = Builder(len(request.read), width if with_state else 0)
    node = builder.features
    for module in (conditioner.z_layer, *conditioner.trunk):
        kind = type(module)
        if kind is request.linear:
            watch.module(module)
            node = parameters.linear(builder, node, module)
            if module is conditioner.z_layer and with_state:
                node = builder.sum(node, builder.context)
        else:
            activation = watch.activation(module)
            if activation is None:
                return f"its conditioner has a {kind.__name__}"
            node = builder.activation(node, activation)
    return builder.program()
