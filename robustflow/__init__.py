"""Fused kernels for conditional and spline normalizing flows that cannot blow up.

``robustflow.functional`` has the transforms, ``robustflow.nn`` the layers,
``robustflow.distributions`` the transforms for ``torch.distributions``, ``robustflow.compat`` the
drop-ins for existing flow libraries, ``robustflow.reference`` the plain PyTorch reference that the
kernels are tested against.
"""

import importlib
from typing import TYPE_CHECKING, Any

from robustflow import functional, nn, ops, reference
from robustflow._backend import backends, current_backend, use_backend
from robustflow._native import build_info
from robustflow._patch_on_import import read_environment as _read_patches
from robustflow.memory import empty_cache, retain_memory

if TYPE_CHECKING:
    from robustflow import compat, distributions
    from robustflow.compat.convert import convert_affine

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "backends",
    "build_info",
    "compat",
    "convert_affine",
    "current_backend",
    "distributions",
    "empty_cache",
    "functional",
    "nn",
    "ops",
    "reference",
    "retain_memory",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    # Imported on first use.
    if name in ("compat", "distributions"):
        return importlib.import_module(f"robustflow.{name}")
    if name == "convert_affine":
        return importlib.import_module("robustflow.compat.convert").convert_affine
    raise AttributeError(f"module 'robustflow' has no attribute {name!r}")


_read_patches()
