"""The inverse of an autoregressive layer, with each unit of its masked network computed once.

Inverting D features takes D steps: the parameters of a feature depend on the features before it.
Running the whole network in each step does the same work D times. But a unit can be computed once,
in the first step in which all of its inputs are known. Units are sorted by that step, so that each
step works on slices.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as _every

from robustflow._call_state import PLAIN_TYPES, is_plain_eager
from robustflow._versions import versions

# Elementwise modules. Not PReLU, which may have a weight for each unit.
ELEMENTWISE = frozenset(
    {
        nn.CELU,
        nn.ELU,
        nn.GELU,
        nn.Hardswish,
        nn.Hardtanh,
        nn.Identity,
        nn.LeakyReLU,
        nn.LogSigmoid,
        nn.Mish,
        nn.ReLU,
        nn.ReLU6,
        nn.SELU,
        nn.Sigmoid,
        nn.SiLU,
        nn.Softplus,
        nn.Softsign,
        nn.Tanh,
    }
)


class NotInOrder(Exception):
    """Why an inverse cannot be computed this way, as a clause."""


class Masked(NamedTuple):
    """A linear layer whose mask (out_features, in_features) is 1 where units are connected."""

    weight: Tensor
    bias: Tensor | None
    mask: Tensor
    offset: Tensor | None = None  # (N or 1, out_features), added to the result


class Gate(NamedTuple):
    """Multiplies by the sigmoid of a function of the context alone, (N or 1, units)."""

    values: Tensor


class Add(NamedTuple):
    """A residual connection: adds the values of an earlier node."""

    node: int


# Node 0 is the input; operation i computes node i + 1 from node i. A function is elementwise.
Operation = Masked | Gate | Add | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """When each unit of a network can be computed.

    Attributes:
        order: for each node, its units sorted by step.
        ends: for each node, how many of them are known after each step.
        features: the features whose parameters each step computes, as an index.
        members: the same, as lists of numbers.
        num_params: parameters of a feature.
    """

    order: tuple[Tensor, ...]
    ends: tuple[tuple[int, ...], ...]
    features: tuple[slice | Tensor, ...]
    members: tuple[tuple[int, ...], ...]
    num_params: int


def make_plan(
    operations: Sequence[Operation],
    features: int,
    context_features: int = 0,
    sources: Sequence[int] | None = None,
) -> Plan | None:
    """The plan of a network, or None if its masks do not allow computing feature after feature.

    Args:
        operations: the network; its input is the features, then the context, and its output index
            is ``d * num_params + p``.
        features: D.
        context_features: known from the start.
        sources: for each input, the feature that it is computed from; None: the inputs are the
        features.
    """
    from_input = any(isinstance(each, Add) and each.node == 0 for each in operations)
    ends = (operations[0], operations[-1])
    if from_input or not all(isinstance(operation, Masked) for operation in ends):
        return None
    unknown = features + 1
    device = next(o.mask.device for o in operations if isinstance(o, Masked))
    known = torch.full((features + context_features,), unknown, device=device)
    known[features:] = 0
    entering = torch.arange(features + context_features, device=device)
    if sources is not None:
        entering = torch.cat([torch.tensor(sources, device=device), entering[features:]])
    for step in range(features):
        steps = _steps(operations, known[entering])
        needed = steps[-1].view(features, -1).amax(1)
        now = (needed <= step) & (known[:features] == unknown)
        known[:features][now] = step + 1
        if not now.any():
            break
    if (known == unknown).any():
        return None
    steps = _steps(operations, known[entering])
    for i, operation in enumerate(operations):
        if isinstance(operation, Add) and not torch.equal(steps[i], steps[operation.node]):
            return None  # the two would be sorted differently
    count = int(known.max())
    every = torch.arange(count, device=device)
    last = steps[-1].view(features, -1)
    feature_step = last.amax(1)
    steps[-1] = feature_step.repeat_interleave(last.shape[1])
    indices = [(feature_step == t).nonzero().flatten() for t in range(count)]
    return Plan(
        tuple(step.argsort(stable=True) for step in steps),
        tuple(tuple((step <= every[:, None]).sum(1).tolist()) for step in steps),
        tuple(_index(index) for index in indices),
        tuple(tuple(index.tolist()) for index in indices),
        last.shape[1],
    )


def _index(features: Tensor) -> slice | Tensor:
    """A slice, which copies nothing, if the features are adjacent."""
    first, last = int(features[0]), int(features[-1])
    return slice(first, last + 1) if last - first + 1 == len(features) else features


def _steps(operations: Sequence[Operation], known: Tensor) -> list[Tensor]:
    """For the units of each node, the first step in which all of their inputs are known."""
    steps = [known]
    for operation in operations:
        now = steps[-1]
        if isinstance(operation, Masked):
            now = torch.where(operation.mask.bool(), now, 0).amax(1)
        elif isinstance(operation, Add):
            now = torch.maximum(now, steps[operation.node])
        steps.append(now)
    return steps


class Plans:
    """Cached plans of networks, each valid while its network and its masks stay the same."""

    def __init__(self) -> None:
        # By the network's id: a reference to it, its masks, their counts of writes, the plan.
        self._made: dict[
            int, tuple[weakref.ref[nn.Module], list[Tensor], list[int], Plan | None]
        ] = {}

    def of(
        self,
        network: nn.Module,
        operations: Sequence[Operation],
        features: int,
        context_features: int = 0,
        sources: Sequence[int] | None = None,
    ) -> Plan:
        """:func:`make_plan`.

        Raises:
            NotInOrder: there is none, or the network reads another number of features.
        """
        masks = [each.mask for each in operations if isinstance(each, Masked)]
        inputs = features if sources is None else len(sources)
        if masks[0].shape[1] != inputs + context_features:
            raise NotInOrder("its network reads another number of features")
        key, now = id(network), versions(masks)
        known = self._made.get(key)
        if known is not None:
            reference, its_masks, then, plan = known
            same = len(its_masks) == len(masks) and all(map(operator.is_, its_masks, masks))
            if same and then == now and reference() is network:
                return _found(plan)
        if masks[0].is_cuda and torch.cuda.is_current_stream_capturing():
            raise NotInOrder("a CUDA graph is captured, where its masks cannot be read")
        plan = make_plan(operations, features, context_features, sources)
        if not any(mask.is_inference() for mask in masks):  # of which torch counts no writes
            gone = weakref.ref(network, lambda _: self._made.pop(key, None))
            self._made[key] = gone, masks, now, plan
        return _found(plan)


def _found(plan: Plan | None) -> Plan:
    if plan is None:
        raise NotInOrder("its masks leave no order in which the features can be computed")
    return plan


def run(operations: Sequence[Operation], x: Tensor) -> Tensor:
    """The whole network, on (N, features and context)."""
    values = [x]
    for operation in operations:
        now = values[-1]
        if isinstance(operation, Masked):
            now = functional.linear(now, operation.weight * operation.mask, operation.bias)
            now = now if operation.offset is None else now + operation.offset
        elif isinstance(operation, Gate):
            now = now * operation.values.sigmoid()
        elif isinstance(operation, Add):
            now = now + values[operation.node]
        else:
            now = operation(now)
        values.append(now)
    return values[-1]


def invert_in_order(
    plan: Plan,
    operations: Sequence[Operation],
    y: Tensor,
    invert: Callable[[Tensor, Tensor], Tensor],
    context: Tensor | None = None,
    embed: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
) -> Tensor:
    """The x that an autoregressive layer maps to y, without gradients.

    Args:
        plan: of the network, by :func:`make_plan`.
        operations: the network.
        y: (N, D).
        invert: from some features of y, (N, n), and their parameters, (N, n, num_params), to those
            of x.
        context: (N, context_features), read with the features.
        embed: from some features of x, (N, n), and their indices, to the network's inputs that are
            computed from them, in the order of all inputs; None: the inputs are the features.
    """
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
                made = functional.linear(
                    source[:, :known],
                    operation.weight[begin:end, :known],
                    None if bias is None else bias[begin:end],
                )
                if offset is not None:
                    made = made + offset[:, begin:end]
            elif isinstance(operation, Gate):
                made = values[i] * operation.values[:, begin:end]
            elif isinstance(operation, Add):
                made = values[i] + values[operation.node]
            else:
                made = operation(values[i])
            values.append(made)
        params = values[-1].unflatten(1, (-1, plan.num_params))
        found = invert(y[:, features], params)
        x[:, features] = found
        inputs = found if embed is None else embed(found, plan.members[step])
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


def check_plain(modules: Iterable[nn.Module], *kinds: type[nn.Module]) -> None:
    """Modules are of exactly these classes, or elementwise, and have no hooks.

    Raises:
        NotInOrder: one is not.
    """
    if _every._global_forward_hooks or _every._global_forward_pre_hooks:
        raise NotInOrder("hooks watch all modules")
    for module in modules:
        if type(module) not in kinds and type(module) not in ELEMENTWISE:
            raise NotInOrder(f"its network has a {type(module).__name__}")
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            raise NotInOrder(f"hooks watch a {type(module).__name__} of its network")


def check_can_run(*tensors: Tensor) -> None:
    """The call is plain eager, without gradients, and in one dtype.

    Raises:
        NotInOrder: it may not.
    """
    first = tensors[0]
    if torch.is_grad_enabled():
        raise NotInOrder("gradients are enabled")
    if not is_plain_eager():
        raise NotInOrder(
            "the call is compiled or traced, or in a transform of torch.func, in forward mode, or "
            "watched by a mode"
        )
    if first.is_meta or any(type(tensor) not in PLAIN_TYPES for tensor in tensors):
        raise NotInOrder("its tensors are not plain ones with data")
    if torch.is_autocast_enabled(first.device.type):
        raise NotInOrder("autocast is on")
    if any(tensor.dtype != first.dtype or tensor.device != first.device for tensor in tensors):
        raise NotInOrder("its network, input and context differ in dtype or device")
