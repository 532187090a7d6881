"""``ROBUSTFLOW_PATCH=nflows,zuko``: libraries that are patched when they are imported.

A process that is spawned starts without the patches of its parent, and inherits its environment.
Nothing is imported for the variable's sake: a library that is there when robustflow is imported is
patched then, another right after its own import, and one that is never imported costs nothing.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from robustflow._patchable import LIBRARIES

VARIABLE = "ROBUSTFLOW_PATCH"


def errors() -> list[str]:
    """What is wrong with the variable, in sentences."""
    return [
        f"{VARIABLE} must be names of libraries with commas between them, of "
        f"{', '.join(LIBRARIES)}, got {name!r}."
        for name in _names()
        if name not in LIBRARIES
    ]


def read_environment() -> None:
    """Patch what the variable names, now or when it is imported. What is wrong is a warning."""
    for error in errors():
        warnings.warn(f"{error} It is left out.", stacklevel=2)
    waiting = {}
    for name in _names():
        if name in LIBRARIES:
            module = LIBRARIES[name].imported
            if module in sys.modules:
                _patch(name)
            else:
                waiting[module] = name
    if waiting:
        sys.meta_path.insert(0, _Finder(waiting))


def _names() -> list[str]:
    names = (name.strip() for name in os.environ.get(VARIABLE, "").split(","))
    return [name for name in dict.fromkeys(names) if name]


def _patch(name: str) -> None:
    """For the rest of the process, or until ``unpatch(name)``."""
    from robustflow import compat

    try:
        compat.patch(name)
    except compat.PatchError as error:
        warnings.warn(f"{VARIABLE} names {name}. {error}", stacklevel=2)


class _Finder(MetaPathFinder):
    """Finds no module itself; patches the libraries that it waits for after their import.

    Args:
        waiting: by the module that is imported, the library.
    """

    def __init__(self, waiting: dict[str, str]) -> None:
        self.waiting = waiting

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(self, spec.loader)
                return spec
        return None

    def imported(self, module: str) -> None:
        name = self.waiting.pop(module, None)
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        if name is not None:
            _patch(name)


class _Loader(Loader):
    """Wraps the loader of one import; the module does not keep it."""

    def __init__(self, finder: _Finder, own: Loader) -> None:
        self._finder = finder
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._own
        self._own.exec_module(module)
        self._finder.imported(spec.name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)
