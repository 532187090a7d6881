"""nflows: ``AffineCouplingTransform`` and ``MaskedAffineAutoregressiveTransform``."""

from __future__ import annotations

from nflows.transforms.autoregressive import (
    AutoregressiveTransform,
    MaskedAffineAutoregressiveTransform,
)
from nflows.transforms.coupling import AffineCouplingTransform, CouplingTransform
from nflows.transforms.made import MaskedLinear
from torch import nn

from robustflow.compat.convert._affine import Found
from robustflow.compat.convert._nflows_like import AutoregressiveMethods, CouplingMethods, find_in

HEAD_KINDS = (MaskedLinear,)


class ModifiedRQCouplingTransform(CouplingMethods, CouplingTransform):
    """What an ``AffineCouplingTransform`` becomes."""


class ModifiedRQAutoregressiveTransform(AutoregressiveMethods, AutoregressiveTransform):
    """What a ``MaskedAffineAutoregressiveTransform`` becomes."""


def find(module: nn.Module) -> Found:
    return find_in(
        module,
        (AffineCouplingTransform, CouplingTransform, ModifiedRQCouplingTransform),
        (
            MaskedAffineAutoregressiveTransform,
            AutoregressiveTransform,
            ModifiedRQAutoregressiveTransform,
        ),
    )
