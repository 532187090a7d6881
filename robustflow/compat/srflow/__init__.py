"""The conditional couplings of SRFlow, LLFlow and robustNF, under their published names.

Changing an import is enough: constructor, ``forward``, the layout of parameters and the keys of
the state_dict are the published ones, so a published checkpoint loads with ``strict=True``; the
transforms run as fused kernels.

    # from models.modules.FlowAffineCouplingsAblation import CondAffineSeparatedAndCond
    from robustflow.compat.srflow import CondAffineSeparatedAndCond

:func:`condition_once` lets an otherwise unmodified network project its features once for many
samples. Written from the published interface and formulas alone.
"""

from robustflow.compat.srflow._couplings import (
    CondAffineReparamSeparatedAndCond,
    CondAffineSeparatedAndCond,
    CondBsplineSeparatedAndCond,
    CondRQsplineSeparatedAndCond,
)
from robustflow.compat.srflow._once import condition_once

__all__ = [
    "CondAffineReparamSeparatedAndCond",
    "CondAffineSeparatedAndCond",
    "CondBsplineSeparatedAndCond",
    "CondRQsplineSeparatedAndCond",
    "condition_once",
]
