"""SRFlow's, LLFlow's and robustNF's published code, by the names of its classes.

Sampling is ``reverse=True``. A coupling's three steps are one layer here: their transforms are
functions inside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import nn

from robustflow.diagnostics._layers import Spread, Watched
from robustflow.diagnostics._libraries.other import OtherLayer, turned_by
from robustflow.diagnostics.kinds import Kind

_KINDS: dict[str, tuple[Kind, Spread]] = {
    "CondAffineSeparatedAndCond": ("self-conditional", "coupling"),
    "CondAffineReparamSeparatedAndCond": ("self-conditional", "coupling"),
    "CondRQsplineSeparatedAndCond": ("self-conditional", "coupling"),
    "CondBsplineSeparatedAndCond": ("self-conditional", "coupling"),
    "ActNorm2d": ("actnorm", "elementwise"),
    "InvertibleConv1x1": ("1x1", "channels"),
    "Split2d": ("split", "sample"),
    "SqueezeLayer": ("reshape", "replay"),
}


class _PublishedLayer(OtherLayer):
    library = "SRFlow"

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.kind, self.spread = _KINDS[type(module).__name__]
        self.conditional = self.kind in ("self-conditional", "split")
        if self.spread == "coupling":
            kept = cast(Any, module).in_channels // 2
            self.kept, self.changed = slice(0, kept), slice(kept, None)
            # Its nets are plain convolutions of one size; take the widest for all of them.
            self.conditioner = max(module.children(), key=_extent, default=None)


def _extent(net: nn.Module) -> int:
    """How far a stack of convolutions reaches, both ways together."""
    sizes = (each.kernel_size[0] for each in net.modules() if isinstance(each, nn.Conv2d))
    return sum(size - 1 for size in sizes)


def find(module: nn.Module) -> Watched | None:
    if type(module).__name__ in _KINDS and turned_by(module) is not None:
        return _PublishedLayer(module)
    return None


def flips(module: nn.Module) -> bool:
    return False


def members(module: nn.Module) -> Iterable[nn.Module]:
    return ()
