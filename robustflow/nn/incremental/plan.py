"""When each unit of a masked network can be computed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustflow._by_identity import ByIdentity
from robustflow._versions import are_counted, versions
from robustflow.nn.incremental.operations import Add, Masked, Operation


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


class PlannedNetwork(NamedTuple):
    """A masked network, and when each of its units can be computed."""

    operations: Sequence[Operation]
    plan: Plan


class _Cached(NamedTuple):
    masks: Sequence[Tensor]
    versions: Sequence[int]
    plan: Plan | None

    def holds_for(self, masks: Sequence[Tensor], versions: Sequence[int]) -> bool:
        """Whether the plan was made of these very masks, as they are now."""
        return (
            len(masks) == len(self.masks)
            and all(map(operator.is_, masks, self.masks))
            and versions == self.versions
        )


class Planner:
    """Plans networks, each once for as long as its module and its masks stay the same."""

    def __init__(self) -> None:
        self._plans = ByIdentity[_Cached]()

    def plan(
        self,
        module: nn.Module,
        operations: Sequence[Operation],
        features: int,
        context_features: int = 0,
        sources: Sequence[int] | None = None,
    ) -> PlannedNetwork | str:
        """A module's network with its plan, or a clause that says why it has none.

        Args:
            module: whose network it is.
            operations, features, context_features, sources: as of :func:`make_plan`.
        """
        masks = [each.mask for each in operations if isinstance(each, Masked)]
        inputs = features if sources is None else len(sources)
        if masks[0].shape[1] != inputs + context_features:
            return "its network reads another number of features"
        now = versions(masks)
        cached = self._plans.get(module)
        if cached is None or not cached.holds_for(masks, now):
            if masks[0].is_cuda and torch.cuda.is_current_stream_capturing():
                return "a CUDA graph is captured, where its masks cannot be read"
            plan = make_plan(operations, features, context_features, sources)
            cached = _Cached(masks, now, plan)
            if are_counted(masks):
                self._plans.set(module, cached)
        if cached.plan is None:
            return "its masks leave no order in which the features can be computed"
        return PlannedNetwork(operations, cached.plan)
