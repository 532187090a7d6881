"""Modules of this package that know one library each, where that library is in use."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

# By the package that must be imported for a model to have its layers.
LIBRARIES = {
    "robustflow": "layers",
    "robustflow.compat.srflow": "srflow",
    "nflows": "nflows",
    "glasflow": "glasflow",
    "normflows": "normflows",
    "FrEIA": "freia",
    "zuko": "zuko",
}


def adapters(package: str) -> list[ModuleType]:
    """The modules of ``package`` for the libraries that are imported, ``layers`` first."""
    return [
        importlib.import_module(f"{package}.{name}")
        for library, name in LIBRARIES.items()
        if library in sys.modules
    ]
