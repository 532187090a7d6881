"""glasflow, which carries a copy of nflows: sampling is ``inverse``."""

from __future__ import annotations

from collections.abc import Iterable

import glasflow.nflows.transforms as package
from glasflow.nflows.utils import torchutils
from torch import nn

from robustflow.diagnostics._layers import Watched
from robustflow.diagnostics._libraries._nflows_like import find_in, flips_in


def find(module: nn.Module) -> Watched | None:
    return find_in(module, package, "glasflow", torchutils)


def flips(module: nn.Module) -> bool:
    return flips_in(module, package)


def members(module: nn.Module) -> Iterable[nn.Module]:
    return ()
