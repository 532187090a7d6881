"""robustflow.compat.srflow: the couplings of SRFlow, LLFlow and robustNF."""

from __future__ import annotations

from typing import Any

from torch import nn

from robustflow.compat.srflow import SeparatedAndCond
from robustflow.diagnostics.describe._tree import Chain, Tree, joined, unknown
from robustflow.diagnostics.describe.layers import Describe, transformed
from robustflow.diagnostics.kinds import Kind


def describe(module: nn.Module, name: str, child: Describe) -> Tree | None:
    if not isinstance(module, SeparatedAndCond):
        return None
    if type(module).forward is not SeparatedAndCond.forward:
        return unknown(name, module, "a class of its own, which overrides forward")
    changed = (module.in_channels - module.kept_channels) / module.in_channels

    def step(net: str, kind: Kind, fraction: float) -> Tree:
        transform: Any = module._transform_of(net)
        return transformed(joined(name, net), module, kind, transform, fraction)

    steps = [step("fFeatures", "injector", 1.0)]
    if module.uses_std:
        steps.append(step(f"{module._net_name}_std", "std-conditional", changed))
    steps.append(step(module._net_name, "self-conditional", changed))
    return Chain(tuple(steps))
