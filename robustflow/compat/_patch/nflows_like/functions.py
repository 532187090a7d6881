"""nflows' two spline functions, which normflows, glasflow and many packages carry copies of."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import NamedTuple

from robustflow.compat._patch.code import Change
from robustflow.compat._patch.errors import PatchError
from robustflow.compat._patch.nflows_like import boxed, unconstrained
from robustflow.compat._patch.nflows_like.arguments import IDENTITY_INIT
from robustflow.compat._patch.recognise import require_parameters


class _Known(NamedTuple):
    parameters: tuple[str, ...]
    change: Callable[[FunctionType, str], Change]  # of a function and its library


_FUNCTIONS = {
    unconstrained.NAME: _Known(unconstrained.PARAMETERS, unconstrained.change_unconstrained),
    boxed.NAME: _Known(boxed.PARAMETERS, boxed.change_boxed),
}


def changes_of_module(module: ModuleType, library: str) -> list[Change]:
    """The spline functions that a module defines, and the changes for them.

    Raises:
        PatchError: there are none, or they are others.
    """
    found = {
        name: function
        for name in _FUNCTIONS
        if isinstance(function := vars(module).get(name), FunctionType)
    }
    for name, function in found.items():
        known = _FUNCTIONS[name].parameters
        require_parameters(library, function, known, (*known, IDENTITY_INIT))
    changes: list[Change] = [
        _FUNCTIONS[name].change(function, library) for name, function in found.items()
    ]
    if not changes:
        raise PatchError(
            f"{library} cannot be patched: {module.__name__} defines neither "
            f"{unconstrained.NAME} nor {boxed.NAME}."
        )
    return changes
