"""Fused kernels for conditional and spline normalizing flows that cannot blow up.

``robustflow.functional`` has the transforms, ``robustflow.nn`` the layers,
``robustflow.reference`` the plain PyTorch that the kernels are held to.
"""

from robustflow import functional, nn, ops, reference
from robustflow._backend import backends, current_backend, use_backend
from robustflow._native import build_info
from robustflow.memory import retain_memory

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "backends",
    "build_info",
    "current_backend",
    "functional",
    "nn",
    "ops",
    "reference",
    "retain_memory",
    "use_backend",
]
