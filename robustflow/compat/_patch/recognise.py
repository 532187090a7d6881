"""Recognises a function by its parameters and by its results on a few random inputs.

A version string says little: a library's main branch carries the release's, and a function of the
same name and signature may compute something else.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from robustflow._backend import current_backend
from robustflow.compat._patch.code import Function
from robustflow.compat._patch.errors import PatchError

# In float64, between two formulas of the same function. Other functions differ by 0.1 and more.
TOLERANCE = 1e-6
COUNT = 256


def device() -> str:
    """Where to probe: on the CPU, unless a backend was chosen that serves only the GPU."""
    on_gpu = current_backend() in ("cuda", "triton") and torch.cuda.is_available()
    return "cuda" if on_gpu else "cpu"


# What Python and torch raise if a function does not take the arguments.
_REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)


def refusals(function: Function) -> tuple[type[Exception], ...]:
    """The errors that say a function is another one: those, and its module's own."""
    names = getattr(function, "__globals__", {}).values()
    own = (each for each in names if isinstance(each, type) and issubclass(each, Exception))
    return (*_REFUSALS, *own)


@contextmanager
def standard_modes() -> Iterator[None]:
    """Runs probes independently of the default device and modes of the caller of `patch`.

    Libraries create tensors on the default device, which is :func:`device` here, and random
    weights, which leave the global random state as it was.
    """
    where = device()
    with ExitStack() as modes:
        modes.enter_context(_disable_current_modes())
        modes.enter_context(torch.device(where))
        modes.enter_context(torch.no_grad())
        modes.enter_context(torch.autocast(where, enabled=False))
        modes.enter_context(torch.random.fork_rng([0] if where == "cuda" else []))
        modes.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal float64 numbers that neither read nor move the global random state."""
    generator = torch.Generator("cpu").manual_seed(seed)
    numbers = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
    return numbers.to(device())


def uniform(*shape: int, low: float, high: float, seed: int = 1) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
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

    Arguments are cloned, since libraries write on theirs.
    """
    try:
        expected = original(*map(_cloned, args))
        found = ours(*map(_cloned, args))
    except refusals(original) as error:
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
