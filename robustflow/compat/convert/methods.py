"""Methods of other libraries' layers: their names, and whether a subclass overrides them."""

from __future__ import annotations

from torch import nn

FORWARD, INVERSE = "forward", "inverse"
COUPLING = ("_coupling_transform_forward", "_coupling_transform_inverse")
ELEMENTWISE = ("_elementwise_forward", "_elementwise_inverse")


def overrides(module: nn.Module, base: type[nn.Module], *names: str) -> str | None:
    """Why a subclass cannot be followed: it has its own version of one of these methods."""
    for name in names:
        if getattr(type(module), name) is not getattr(base, name):
            return f"its class overrides {base.__name__}.{name}"
    return None
