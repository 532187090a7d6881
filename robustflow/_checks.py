"""Checks of arguments: each error names the argument, what was given and what is wanted."""

from __future__ import annotations

import difflib
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


Checked = TypeVar("Checked")


def once(check: Callable[..., Checked]) -> Callable[..., Checked]:
    """Remember the result of a check for each group of settings; no setting is a tensor.

    For a small batch, the checks would take longer than the kernel.
    """
    remembering = functools.lru_cache(maxsize=4096, typed=True)(check)

    @functools.wraps(check)
    def call(*settings: Any) -> Checked:
        if torch.compiler.is_compiling():
            return check(*settings)
        try:
            return remembering(*settings)
        except TypeError:  # perhaps an unhashable setting: let the check say what is wrong with it
            return check(*settings)

    return call


def suggestion(name: str, known: Iterable[str]) -> str:
    """What a mistaken name may have meant, as a sentence: the nearest known one, or all of them.

    Example:
        >>> suggestion("learning_rat", ["learning_rate", "seed"])
        "Did you mean 'learning_rate'?"
    """
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"Did you mean {close[0]!r}?"
    return f"There are {', '.join(known)}." if known else "There are none."


def describe(value: object) -> str:
    """A value for a message: written out, or only its kind and size if that would be long."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (str, Real)):
        return repr(value)
    return f"{'an' if type(value).__name__[0] in 'AEIOUaeiou' else 'a'} {type(value).__name__}"


def static(size: int) -> int:
    """A size as a plain number. torch.jit.trace turns sizes into tensors."""
    if isinstance(size, int):
        return size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return int(size)


def check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float, Real)):
        raise TypeError(f"{name} must be a number, got {describe(value)}.")


def check_count(name: str, value: object, minimum: int = 1) -> None:
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= minimum:
        return
    kind = ValueError if isinstance(value, Real) else TypeError
    raise kind(f"{name} must be a whole number of at least {minimum}, got {describe(value)}.")


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float64, float32, bfloat16 or float16, got {value.dtype}: "
            f"convert it with {name}.float()."
        )


def check_same_device(name: str, value: Tensor, x: Tensor) -> None:
    if value.device != x.device:
        raise ValueError(
            f"{name} is on {value.device} and the input on {x.device}: move one of them."
        )


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}.")


def check_interval(name: str, interval: Sequence[float]) -> tuple[float, float]:
    if not isinstance(interval, Sequence):
        raise TypeError(f"{name} must be a pair of numbers, got {describe(interval)}.")
    if len(interval) != 2 or not all(isinstance(edge, (int, float)) for edge in interval):
        raise ValueError(f"{name} must be a pair of numbers, got {interval!r}.")
    lower, upper = float(interval[0]), float(interval[1])
    if not -math.inf < lower < upper < math.inf:
        raise ValueError(f"{name} must be finite and increasing, got {(lower, upper)}.")
    return lower, upper


def check_minimum_bin(name: str, value: float, num_bins: int) -> None:
    check_number(name, value)
    if not 0 < value * num_bins < 1:
        raise ValueError(
            f"{name} must lie in (0, 1/{num_bins}) so that {num_bins} bins fit the box, "
            f"got {value!r}."
        )


def check_at_least_zero(name: str, value: float) -> None:
    check_number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}.")


def check_positive(name: str, value: float) -> None:
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}.")


def fits(size: int, full: int) -> bool:
    """As many as wanted, or one for all.

    Do not write ``size in (1, full)``: inside torch.compile, a dynamic size is not found in a tuple
    that has an equal one.
    """
    return size == 1 or size == full


def check_leading_shape(
    name: str, shape: Sequence[int], expected: Sequence[int], meaning: str
) -> None:
    if shape == expected:  # the usual case, at a tenth of the cost of the next
        return
    if len(shape) != len(expected) or any(
        not fits(size, full) for size, full in zip(shape, expected, strict=True)
    ):
        raise ValueError(
            f"{name} has dimensions {tuple(shape)} where {tuple(expected)} are wanted: {meaning}."
        )
