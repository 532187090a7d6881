"""glasflow: its copy of nflows, and the flows that it makes of it."""

from __future__ import annotations

from glasflow.flows.base import Flow
from glasflow.nflows import flows, transforms
from torch import nn

from robustflow.compat.convert.glasflow import (
    ModifiedRQAutoregressiveTransform,
    ModifiedRQCouplingTransform,
)
from robustflow.diagnostics.describe import _nflows_like
from robustflow.diagnostics.describe._tree import Tree, joined
from robustflow.diagnostics.describe.layers import Describe

_TARGETS = (ModifiedRQCouplingTransform, ModifiedRQAutoregressiveTransform)


def describe(module: nn.Module, name: str, child: Describe) -> Tree | None:
    if isinstance(module, (Flow, flows.Flow)):
        return child(module._transform, joined(name, "_transform"))
    return _nflows_like.describe(module, name, child, transforms, _TARGETS)
