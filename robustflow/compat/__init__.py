"""Drop-ins: robustflow's kernels inside existing flow libraries.

``patch("nflows")`` (or normflows, zuko, FrEIA, glasflow, transformers) accelerates an installed
library in place; ``patch_module`` does so for a copy of nflows' functions in another package.
"""

from robustflow.compat._patch.errors import PatchError
from robustflow.compat._patch.interface import (
    fused_layers,
    patch,
    patch_module,
    patched,
    unpatch,
)
from robustflow.compat._patch.session import Patch
from robustflow.compat._patch.workers import worker_init

__all__ = [
    "Patch",
    "PatchError",
    "fused_layers",
    "patch",
    "patch_module",
    "patched",
    "unpatch",
    "worker_init",
]
