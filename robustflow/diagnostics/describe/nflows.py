"""nflows: its flows and transforms."""

from __future__ import annotations

from nflows import transforms
from nflows.flows import Flow
from torch import nn

from robustflow.compat.convert.nflows import (
    ModifiedRQAutoregressiveTransform,
    ModifiedRQCouplingTransform,
)
from robustflow.diagnostics.describe import _nflows_like
from robustflow.diagnostics.describe._tree import Tree, joined
from robustflow.diagnostics.describe.layers import Describe

_TARGETS = (ModifiedRQCouplingTransform, ModifiedRQAutoregressiveTransform)


def describe(module: nn.Module, name: str, child: Describe) -> Tree | None:
    if isinstance(module, Flow):
        return child(module._transform, joined(name, "_transform"))
    return _nflows_like.describe(module, name, child, transforms, _TARGETS)
