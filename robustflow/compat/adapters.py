"""Picks the adapter modules, one for each library, of the libraries that are in use."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

# Adapter by the package that must be imported before a model can contain its layers.
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
    """The adapter modules in ``package`` for the libraries imported so far, ``layers`` first."""
    return [
        importlib.import_module(f"{package}.{name}")
        for library, name in LIBRARIES.items()
        if library in sys.modules
    ]
