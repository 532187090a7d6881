"""Running a library's own code unpatched, with all that it calls."""

from __future__ import annotations

import threading
from typing import Any

import torch

from robustflow.compat._patch.code import Function

_own_code = threading.local()


def run_own_code(original: Function, *args: Any, **kwargs: Any) -> Any:
    """Run a library's own function; other patched functions that it calls run unpatched too."""
    if torch.compiler.is_compiling():
        return original(*args, **kwargs)
    before = runs_own_code()
    _own_code.active = True
    try:
        return original(*args, **kwargs)
    finally:
        _own_code.active = before


def runs_own_code() -> bool:
    """Whether this thread is inside :func:`run_own_code`."""
    if torch.compiler.is_compiling():
        return False
    return getattr(_own_code, "active", False)
