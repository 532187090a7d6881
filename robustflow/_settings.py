"""The operators' configurations, and the box, from the settings of the public functions, checked.

A configuration is in the order of its operator's schema (robustflow/ops/transforms.py). It is made
once for each group of settings, and then remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustflow import ops
from robustflow._checks import (
    check_at_least_zero,
    check_choice,
    check_count,
    check_interval,
    check_leading_shape,
    check_minimum_bin,
    check_number,
    check_positive,
    describe,
    once,
)

Bound = float | Sequence[float] | Tensor
Edges = float | tuple[float, float, float, float]  # a tail bound; or left, right, bottom, top

_REDUCE = ("sum", "none")
_DERIVATIVE = ("exp", "softclip")
_SCALES = tuple(ops.SCALES)
_TAILS = tuple(ops.TAILS)
_PARAMETRIZATIONS = tuple(ops.PARAMETRIZATIONS)


@once
def modified_rq_config(
    inverse: bool,
    interval: tuple[float, float],
    min_bin: float,
    min_derivative: float,
    derivative: str,
    reduce: str,
    dims: int,
) -> tuple[Any, ...]:
    check_choice("derivative", derivative, _DERIVATIVE)
    left, right = check_interval("interval", interval)
    check_minimum_bin("min_bin", min_bin, 2)
    check_number("min_derivative", min_derivative)
    if not 0 < min_derivative < 1:
        raise ValueError(f"min_derivative must lie in (0, 1), got {min_derivative!r}.")
    softclip = derivative == "softclip"
    return inverse, left, right, min_bin, min_derivative, softclip, _batch_dims(reduce, dims)


@once
def rq_config(
    num_bins: int,
    inverse: bool,
    tails: str | None,
    edges: Edges,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
    parametrization: str,
    logit_scale: float,
    reduce: str,
    dims: int,
) -> tuple[Any, ...]:
    check_count("num_bins", num_bins)
    check_choice("tails", tails, _TAILS)
    check_choice("parametrization", parametrization, _PARAMETRIZATIONS)
    check_minimum_bin("min_bin_width", min_bin_width, num_bins)
    check_minimum_bin("min_bin_height", min_bin_height, num_bins)
    check_positive("min_derivative", min_derivative)
    check_positive("logit_scale", logit_scale)
    if parametrization == "softclip" and min_derivative >= 1:
        raise ValueError(f"min_derivative must be below 1 with 'softclip', got {min_derivative!r}.")
    if isinstance(edges, tuple):
        left, right = check_interval("(left, right)", edges[:2])
        bottom, top = check_interval("(bottom, top)", edges[2:])
        if tails is not None and (left, right) != (bottom, top):
            raise ValueError(
                f"With tails={tails!r} the outside is the identity, so left and right must equal "
                f"bottom and top, got {edges}; use tails=None for another box."
            )
    else:
        check_positive("tail_bound", edges)
        left, right, bottom, top = -edges, edges, -edges, edges
    return (
        num_bins,
        inverse,
        ops.TAILS[tails],
        ops.PARAMETRIZATIONS[parametrization],
        *(left, right, bottom, top),
        min_bin_width,
        min_bin_height,
        min_derivative,
        logit_scale,
        _batch_dims(reduce, dims),
    )


@once
def affine_config(
    inverse: bool,
    scale: str,
    eps: float,
    clamp: float | None,
    shift_first: bool,
    reciprocal: bool,
    reduce: str,
    dims: int,
) -> tuple[Any, ...]:
    check_choice("scale", scale, _SCALES)
    check_at_least_zero("eps", eps)
    kind, default_clamp = ops.SCALES[scale]
    if clamp is None:
        clamp = default_clamp
    check_positive("clamp", clamp)
    return inverse, kind, eps, clamp, shift_first, reciprocal, _batch_dims(reduce, dims)


def _batch_dims(reduce: str, dims: int) -> int:
    """How many leading dimensions the log-determinant keeps, of so many."""
    check_choice("reduce", reduce, _REDUCE)
    return min(1, dims) if reduce == "sum" else dims


def box_of(
    x: Tensor,
    tail_bound: Bound,
    left: Bound | None = None,
    right: Bound | None = None,
    bottom: Bound | None = None,
    top: Bound | None = None,
) -> tuple[Tensor | None, Edges]:
    """The box as numbers, or as a constant tensor (..., 4) where it varies by element."""
    if left is right is bottom is top is None and isinstance(tail_bound, (int, float)):
        return None, tail_bound
    if not isinstance(tail_bound, (int, float)):
        tail_bound = _edge("tail_bound", tail_bound, x)
    edges = (
        -tail_bound if left is None else left,
        tail_bound if right is None else right,
        -tail_bound if bottom is None else bottom,
        tail_bound if top is None else top,
    )
    names = ("left", "right", "bottom", "top")
    if all(isinstance(edge, (int, float)) for edge in edges):
        return None, edges  # type: ignore[return-value]
    tensors = [_edge(name, edge, x) for name, edge in zip(names, edges, strict=True)]
    box = torch.stack(torch.broadcast_tensors(*tensors), dim=-1)
    check_leading_shape(
        "tail_bound", (1,) * (x.dim() + 1 - box.dim()) + box.shape[:-1], x.shape, "the inputs'"
    )
    return box, (0.0, 1.0, 0.0, 1.0)


def _edge(name: str, edge: Bound, x: Tensor) -> Tensor:
    """An edge of the box, or a bound, on the device of x and in what the kernels compute in."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not isinstance(edge, Tensor):
        return bound_as_tensor(name, edge, dtype, x.device)
    if edge.requires_grad:
        raise ValueError(
            f"{name} must not require grad: the box is a constant of the transform; detach it, or "
            "rescale the inputs instead."
        )
    # A device that has no float64 may have either tensor, and the CPU the other.
    return edge.to(dtype).to(x.device) if edge.is_cpu else edge.to(x.device).to(dtype)


def bound_as_tensor(name: str, bound: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number, or a sequence of them, as a tensor."""
    try:
        tensor = torch.as_tensor(bound, dtype=dtype, device=device)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be a number, or a sequence or tensor of numbers, got {describe(bound)}."
        ) from None
    if name == "tail_bound" and isinstance(bound, (list, tuple)):
        for i, each in enumerate(bound):
            if isinstance(each, (int, float)):
                check_positive(f"{name}[{i}]", each)
    return tensor
