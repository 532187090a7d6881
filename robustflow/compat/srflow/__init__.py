"""The conditional couplings of SRFlow, LLFlow and robustNF, under their published names.

Changing an import is enough: constructor, ``forward``, the layout of parameters and the keys of
the state_dict are the published ones, so a published checkpoint loads with ``strict=True``; the
transforms run as fused kernels.

    # from models.modules.FlowAffineCouplingsAblation import CondAffineSeparatedAndCond
    from robustflow.compat.srflow import CondAffineSeparatedAndCond

:func:`condition_once` lets an otherwise unmodified network project its features once for many
samples. Written from the published interface and formulas alone.
"""

from robustflow.compat.srflow._conditioner import (
    ActNorm,
    Conditioner,
    NormalisedConv2d,
    ScaledConv2d,
)
from robustflow.compat.srflow._couplings import (
    CondAffineReparamSeparatedAndCond,
    CondAffineSeparatedAndCond,
    CondBsplineSeparatedAndCond,
    CondRQsplineSeparatedAndCond,
    SeparatedAndCond,
)
from robustflow.compat.srflow._once import condition_once

__all__ = [
    "ActNorm",
    "CondAffineReparamSeparatedAndCond",
    "CondAffineSeparatedAndCond",
    "CondBsplineSeparatedAndCond",
    "CondRQsplineSeparatedAndCond",
    "Conditioner",
    "NormalisedConv2d",
    "ScaledConv2d",
    "SeparatedAndCond",
    "condition_once",
]
