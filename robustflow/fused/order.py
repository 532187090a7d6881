"""The order in which the inverse of an autoregressive layer computes its network's units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustflow._versions import are_counted
from robustflow.fused.program import GATE, LINEAR, SUM, Program


class Order(NamedTuple):
    """The steps of an inverse: each computes the units whose inputs are known, then features.

    Attributes:
        units: of each node, sorted by step.
        ends: of each node: how many of its units are known after each step.
    """

    units: tuple[tuple[int, ...], ...]
    ends: tuple[tuple[int, ...], ...]

    @property
    def steps(self) -> int:
        return len(self.ends[0])


def find_order(program: Program, masks: Sequence[Tensor | None]) -> Order | None:
    """The order that the masks of a network leave; None if there is none.

    Nor is there one for masks made in inference mode, whose changes would not be noticed, and for
    those that are not on the CPU.

    Args:
        program: whose output ``d * num_params + p`` is a parameter of feature d.
        masks: of its parameters, in order; None where there is none.
    """
    features, context = program.features, program.context_features
    there = [mask for mask in masks if mask is not None]
    if not are_counted(there) or not all(mask.is_cpu for mask in there):
        return None
    if program.steps[-1].kind != LINEAR:
        return None
    unknown = features + 1
    known = torch.full((features,), unknown, device="cpu")
    for step in range(features):
        needed = _steps(program, masks, known)[-1].view(features, -1).amax(1)
        now = (needed <= step) & (known == unknown)
        known[now] = step + 1
        if not now.any():
            break
    if (known == unknown).any():
        return None
    steps = _steps(program, masks, known)
    num_params = program.outputs // features
    steps[-1] = (known - 1).repeat_interleave(num_params)
    groups = _elementwise_groups(program)
    if any(len(groups[node]) > 1 for node in ((0, 2) if context else (0,))):
        return None
    units, ends = [], []
    every = torch.arange(int(known.max()), device="cpu")
    for node, mine in enumerate(steps):
        order = torch.stack([steps[other] for other in groups[node]]).amax(0).argsort(stable=True)
        if (mine[order].diff() < 0).any():
            return None  # nodes that are combined element by element would be sorted differently
        units.append(tuple(order.tolist()))
        ends.append(tuple((mine <= every[:, None]).sum(1).tolist()))
    if context:  # in both together it comes first
        units[2] = tuple(features + unit for unit in units[1]) + units[0]
    return Order(tuple(units), tuple(ends))


def _steps(program: Program, masks: Sequence[Tensor | None], known: Tensor) -> list[Tensor]:
    """For the units of each node, the first step in which all of their inputs are known."""
    steps = [known]
    if program.context_features:
        context = known.new_zeros(program.context_features)
        steps += [context, torch.cat((known, context))]
    for step in program.steps:
        now = steps[step.node]
        if step.kind == LINEAR:
            mask = masks[step.weight]
            if mask is None:
                now = now.amax().expand(program.nodes[step.out][1])
            else:
                now = torch.where(mask.bool(), now, 0).amax(1)
        elif step.kind in (GATE, SUM):
            now = torch.maximum(now, steps[step.other])
        steps.append(now)
    return steps


def _elementwise_groups(program: Program) -> list[set[int]]:
    """For each node, those that it is combined with element by element, and itself."""
    groups = [{node} for node in range(len(program.nodes))]
    for step in program.steps:
        if step.kind == LINEAR:
            continue
        joined = groups[step.node] | groups[step.other] | groups[step.out]
        for node in joined:
            groups[node] = joined
    return groups
