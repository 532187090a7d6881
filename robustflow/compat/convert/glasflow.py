"""glasflow: the affine layers of its copy of nflows, and its own subclasses of them."""

from __future__ import annotations

from glasflow.nflows.transforms.autoregressive import (
    AutoregressiveTransform,
    MaskedAffineAutoregressiveTransform,
)
from glasflow.nflows.transforms.coupling import AffineCouplingTransform, CouplingTransform
from glasflow.nflows.transforms.made import MaskedLinear
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
