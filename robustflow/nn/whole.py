"""Couplings and autoregressive layers over (N, D) in one call of C++: :mod:`robustflow.fused`.

Served are the default conditioners with a :class:`ModifiedRQSpline`, or an :class:`RQSpline` that
treats all features alike. Other layers and calls run in parts, with the same results to rounding;
the logger ``robustflow.nn`` says why at debug level.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustflow import ops
from robustflow._by_identity import ByIdentity
from robustflow._spec import Spec
from robustflow._transforms import MODIFIED_RQ, RQ
from robustflow.fused import (
    Builder,
    FusedLayer,
    Parameters,
    Program,
    Watch,
    activation_of,
    call_obstacle,
    fused_layer,
    is_available,
)
from robustflow.nn.elementwise import ModifiedRQSpline, RQSpline

_log = logging.getLogger("robustflow.nn")


class _Plan(NamedTuple):
    """What is known of a layer; ``layer`` is None where a reason is all."""

    layer: Any
    reason: str
    spec: Spec
    num_bins: int
    watch: Watch
    parameters: Parameters
    transform: Any
    with_state: bool


_plans = ByIdentity[_Plan]()


def transform_whole(
    layer: Any,
    z: Tensor,
    state: Any,
    inverse: bool,
    read: Sequence[int],
    changed: Sequence[int],
    kinds: tuple[type, type],
) -> tuple[Tensor, Tensor] | None:
    """A layer in one call; None where it runs in parts.

    Args:
        layer: with ``conditioner``, ``transform`` and ``channels``.
        z: (N, D).
        state: what the conditioner's ``project`` returned, (N or 1, hidden), or None.
        inverse: the direction; an autoregressive layer has the forward one alone.
        read, changed: features that the conditioner reads, and that are transformed.
        kinds: the conditioner's class and that of its linear layers.
    """
    if torch.compiler.is_compiling() or not is_available():
        return None
    found = _serve(layer, z, state, inverse, read, changed, kinds)
    if not isinstance(found, str):
        return found
    _log.debug("%s: it is not one call, since %s.", type(layer).__name__, found)
    return None


def _serve(
    layer: Any,
    z: Tensor,
    state: Any,
    inverse: bool,
    read: Sequence[int],
    changed: Sequence[int],
    kinds: tuple[type, type],
) -> tuple[Tensor, Tensor] | str:
    if z.dim() != 2:
        return "z is not one row for each sample"
    if obstacle := call_obstacle():
        return obstacle
    with_state = state is not None
    plan = _plans.get(layer)
    if (
        plan is None
        or plan.transform is not layer.transform
        or plan.with_state is not with_state
        or (plan.layer is None and plan.watch.change() is not None)
    ):
        plan = _describe(layer, with_state, read, changed, kinds)
        _plans.set(layer, plan)
    if plan.layer is None:
        return plan.reason
    if reason := plan.watch.change():
        return reason
    transform = ops.of(plan.spec)
    if transform.route(z, plan.num_bins) is not transform.implementations["native"].eager:
        return "another backend than the CPU kernels was chosen"
    if with_state and len(state) != len(z):
        if state.dim() != 2 or len(state) != 1:
            return "the context does not fit z"
        state = state.expand(len(z), -1)
    found: tuple[Tensor, Tensor] | str = plan.layer(
        inverse, [z, state, *plan.parameters.now(), *plan.parameters.masks()]
    )
    return found


def _describe(
    layer: Any,
    with_state: bool,
    read: Sequence[int],
    changed: Sequence[int],
    kinds: tuple[type, type],
) -> _Plan:
    watch, parameters = Watch(), Parameters()
    watch.module(layer)
    spec, num_bins = (RQ, layer.transform.num_bins) if _is_rq(layer) else (MODIFIED_RQ, 0)
    found = _layer(layer, with_state, read, changed, kinds, watch, parameters)
    reason, made = (found, None) if isinstance(found, str) else ("", found.in_cpp())
    return _Plan(made, reason, spec, num_bins, watch, parameters, layer.transform, with_state)


def _is_rq(layer: Any) -> bool:
    return type(layer.transform) is RQSpline


def _layer(
    layer: Any,
    with_state: bool,
    read: Sequence[int],
    changed: Sequence[int],
    kinds: tuple[type, type],
    watch: Watch,
    parameters: Parameters,
) -> FusedLayer | str:
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
    program = _program(layer.conditioner, with_state, len(read), kinds, watch, parameters)
    if isinstance(program, str):
        return program
    if program.outputs != len(changed) * transform.num_params:
        return "its conditioner makes another number of parameters"
    return program.obstacle or fused_layer(
        program,
        layer.channels,
        tuple(read),
        tuple(changed),
        transform.num_params,
        tuple(configs),
        None,
        (RQ if _is_rq(layer) else MODIFIED_RQ).name,
    )


def _program(
    conditioner: Any,
    with_state: bool,
    features: int,
    kinds: tuple[type, type],
    watch: Watch,
    parameters: Parameters,
) -> Program | str:
    """A conditioner from its features and the projected context to the parameters."""
    own, linear = kinds
    kind: Any = type(conditioner)
    if kind is not own or conditioner.z_layer is None:
        return "its conditioner is not the default one"
    if conditioner.z_features is not None:
        return "its conditioner reads features on circles"
    if with_state != (conditioner.context_layer is not None):
        return "its context is missing, or has no part in it"
    watch.module(conditioner)
    layers = [conditioner.z_layer, *conditioner.trunk]
    if type(conditioner.trunk) is not nn.Sequential:
        return "layers of its conditioner were replaced"
    watch.module(conditioner.trunk)
    width = conditioner.z_layer.weight.shape[0]
    builder = Builder(features, width if with_state else 0)
    node = builder.features
    for module in layers:
        watch.module(module)
        kind = type(module)
        if kind is linear:
            masked = "mask" if "mask" in module._buffers else None
            parameters.add(module, "weight", masked)
            if module.bias is not None:
                parameters.add(module, "bias")
            node = builder.linear(node, module.weight.shape[0], module.bias is not None)
            if module is layers[0] and with_state:
                node = builder.sum(node, builder.context)
            continue
        activation = activation_of(module)
        if activation is None:
            return f"its conditioner has a {kind.__name__}"
        node = builder.activation(node, activation)
    return builder.program()
