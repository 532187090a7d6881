"""Whether the kernels can serve a call that was written for another library."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robustflow._backend import is_recorded
from robustflow._checks import FLOATING, fits

HALF = (torch.float16, torch.bfloat16)


def tensor_obstacle(x: Tensor, *parameters: Tensor) -> str | None:
    """Why these tensors cannot go to a kernel, or None."""
    if not isinstance(x, Tensor):
        return "an argument is not a tensor"
    if x.dtype not in FLOATING:
        return f"a tensor has dtype {x.dtype}"
    device = x.device
    for tensor in parameters:
        if not isinstance(tensor, Tensor):
            return "an argument is not a tensor"
        if tensor.dtype not in FLOATING:
            return f"a tensor has dtype {tensor.dtype}"
        if tensor.device != device:
            return "the tensors are on different devices"
    return None


def minimum_obstacle(num_bins: int, width: Any, height: Any, derivative: Any) -> str | None:
    """Why these smallest sizes and derivative are outside what the kernels support, or None."""
    if not (
        isinstance(width, (int, float))
        and isinstance(height, (int, float))
        and isinstance(derivative, (int, float))
    ):
        return "a minimum is not a number"
    if not (0 < width * num_bins < 1 and 0 < height * num_bins < 1):
        return "the minimal bins do not fit the box strictly, or are zero"
    return None if 0 < derivative < 1 else "min_derivative is not in (0, 1)"


def bound_obstacle(x: Tensor, bound: Any) -> str | None:
    """Why a bound, number or tensor, cannot be the box of the elements of x, or None."""
    if isinstance(bound, Tensor):
        if bound.requires_grad:
            return "the bound requires grad"
        return None if broadcasts_to(bound, x) else "the bound does not broadcast to the inputs"
    return number_obstacle(bound)


def number_obstacle(bound: Any) -> str | None:
    if isinstance(bound, (int, float)) and 0 < bound < math.inf:
        return None
    return "the bound is not a positive number"


def broadcasts_to(tensor: Tensor, x: Tensor) -> bool:
    missing = x.dim() - tensor.dim()
    return missing >= 0 and all(
        fits(size, full) for size, full in zip(tensor.shape, x.shape[missing:], strict=True)
    )


def is_outside(inputs: Tensor, low: Any, high: Any) -> bool:
    """Whether any input is outside a closed interval; on a GPU this synchronises.

    The interval is rounded to the inputs' dtype, as torch does when it compares with a number. A
    traced program cannot raise: it gives NaN for such an input.
    """
    if is_recorded():
        return False
    low, high = (
        in_dtype(edge, inputs.dtype) if isinstance(edge, Tensor) else edge for edge in (low, high)
    )
    return bool(((inputs < low) | (inputs > high)).any())


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in a dtype; no call if it has that dtype already."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def promoted_dtype(x: Tensor, *others: Tensor) -> torch.dtype:
    """The dtype that arithmetic on the tensors gives; autocast computes softmax in float32."""
    dtype = x.dtype
    for other in others:
        if other.dtype != dtype:
            dtype = torch.promote_types(dtype, other.dtype)
    if dtype in HALF and torch.is_autocast_enabled(x.device.type):
        return torch.float32
    return dtype
