"""Recognising a function: by its parameters, and by its results on a few random inputs.

A version string says little: a library's main branch carries the release's, and a function of the
same name and signature may compute something else.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Sequence
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from robustflow._backend import current_backend
from robustflow.compat._code import Function
from robustflow.compat._registry import PatchError

# In float64, between two formulas of the same function. Other functions differ by 0.1 and more.
TOLERANCE = 1e-6
COUNT = 256


def device() -> str:
    """Where to probe: on the CPU, unless a backend was chosen that serves only the GPU."""
    on_gpu = current_backend() in ("cuda", "triton") and torch.cuda.is_available()
    return "cuda" if on_gpu else "cpu"


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal float64 numbers that neither read nor move the global random state."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
    return numbers.to(device())


def uniform(*shape: int, low: float, high: float, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(*shape, generator=generator, dtype=torch.float64, device="cpu")
    return (low + (high - low) * numbers).to(device())


def import_library(library: str, *names: str) -> list[ModuleType]:
    """Import modules of a library.

    Raises:
        PatchError: one is missing; the message says what to install.
    """
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise PatchError(
            f"{library} cannot be patched, since it cannot be imported ({error}): install it, or "
            "a version that robustflow knows."
        ) from error


def require_function(library: str, owner: Any, name: str) -> FunctionType:
    """The function ``owner.name``, unwrapped from a class if it is a method.

    Raises:
        PatchError: there is none.
    """
    function = vars(owner).get(name)
    if isinstance(function, staticmethod):
        function = function.__func__
    if isinstance(function, property):
        function = function.fget
    if not isinstance(function, FunctionType):
        raise PatchError(
            f"{library} cannot be patched: {owner.__name__}.{name} is not there, so this is a "
            "version that robustflow does not know."
        )
    return function


def require_parameters(
    library: str, function: FunctionType, *known: Sequence[str], context: str = ""
) -> None:
    """Raise PatchError unless the function has one of the known lists of parameters."""
    found = tuple(inspect.signature(function).parameters)
    if found not in known:
        raise PatchError(
            f"{library} cannot be patched: {function.__module__}.{function.__qualname__} has the "
            f"parameters {found}, and robustflow knows {known[0]}.{context}"
        )


def compare(library: str, what: str, original: Function, ours: Function, *args: Any) -> None:
    """Raise PatchError unless both functions return the same tensors for ``args``.

    Both are called without gradients and without autocast; arguments are cloned, since libraries
    write on theirs.
    """
    try:
        with torch.no_grad(), torch.autocast(device(), enabled=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = original(*map(_cloned, args))
            found = ours(*map(_cloned, args))
    except Exception as error:
        raise PatchError(
            f"{library} cannot be patched: {what} is not what robustflow knows, since a call on "
            f"random inputs raised {error!r}."
        ) from error
    pairs = list(zip(found, expected, strict=True))
    if any(mine.shape != other.shape for mine, other in pairs):
        shapes = [(tuple(mine.shape), tuple(other.shape)) for mine, other in pairs]
        raise PatchError(f"{library} cannot be patched: {what} returns other shapes: {shapes}.")
    worst = max(float(((a - b).abs() / b.abs().clamp(min=1.0)).max()) for a, b in pairs)
    if not worst <= TOLERANCE:
        raise PatchError(
            f"{library} cannot be patched: {what} computes another function than the one that "
            f"robustflow knows by that name; on random inputs they differ by up to {worst:.3g}."
        )


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
