"""Inverting feature after feature, on units sorted by the step that computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from robustflow.nn.incremental.operations import Add, Gate, Masked, Operation
from robustflow.nn.incremental.plan import PlannedNetwork


def incremental_inverse(
    network: PlannedNetwork,
    y: Tensor,
    invert: Callable[[Tensor, Tensor], Tensor],
    context: Tensor | None = None,
    embed: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
) -> Tensor:
    """The x that an autoregressive layer maps to y, without gradients.

    Args:
        network: which makes the parameters of each feature from the features before it.
        y: (N, D).
        invert: from some features of y, (N, n), and their parameters, (N, n, num_params), to those
            of x.
        context: (N, context_features), read with the features.
        embed: from some features of x, (N, n), and their indices, to the network's inputs that are
            computed from them, in the order of all inputs; None: the inputs are the features.
    """
    operations, plan = network
    ready = [
        _sorted(operation, plan.order[i], plan.order[i + 1])
        for i, operation in enumerate(operations)
    ]
    # The inputs of the masked layers, sorted by step.
    buffers = [
        y.new_empty(len(y), len(plan.order[i])) if isinstance(operation, Masked) else None
        for i, operation in enumerate(operations)
    ]
    first = buffers[0]
    assert first is not None
    done = 0
    if context is not None:
        done = context.shape[1]
        first[:, :done] = context
    x = torch.empty_like(y)
    for step, features in enumerate(plan.features):
        values: list[Tensor] = [first]
        for i, operation in enumerate(ready):
            begin, end = _slice(plan.ends[i + 1], step)
            if isinstance(operation, Masked):
                source = buffers[i]
                assert source is not None
                if i > 0:
                    source[:, slice(*_slice(plan.ends[i], step))] = values[i]
                known, bias, offset = plan.ends[i][step], operation.bias, operation.offset
                value = functional.linear(
                    source[:, :known],
                    operation.weight[begin:end, :known],
                    None if bias is None else bias[begin:end],
                )
                if offset is not None:
                    value = value + offset[:, begin:end]
            elif isinstance(operation, Gate):
                value = values[i] * operation.values[:, begin:end]
            elif isinstance(operation, Add):
                value = values[i] + values[operation.node]
            else:
                value = operation(values[i])
            values.append(value)
        params = values[-1].unflatten(1, (-1, plan.num_params))
        inverted = invert(y[:, features], params)
        x[:, features] = inverted
        inputs = inverted if embed is None else embed(inverted, plan.members[step])
        first[:, done : done + inputs.shape[1]] = inputs
        done += inputs.shape[1]
    return x


def _slice(ends: Sequence[int], step: int) -> tuple[int, int]:
    return ends[step - 1] if step else 0, ends[step]


def _sorted(operation: Operation, sources: Tensor, units: Tensor) -> Operation:
    """An operation on units sorted by step, with the mask and the sigmoid applied."""
    if isinstance(operation, Masked):
        weight, bias, mask, offset = operation
        return Masked(
            (weight * mask).index_select(0, units).index_select(1, sources),
            None if bias is None else bias.index_select(0, units),
            mask,
            None if offset is None else offset.index_select(1, units),
        )
    if isinstance(operation, Gate):
        return Gate(operation.values.sigmoid().index_select(1, units))
    return operation
