"""Tensors among the arguments of the K-bin spline, checked: its parameters, its box's bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustflow._checks import (
    check_leading_shape,
    check_positive,
    check_same_device,
    check_tensor,
    describe,
    static,
)
from robustflow._transforms import count_derivatives

Bound = float | Sequence[float] | Tensor
Edges = float | tuple[float, float, float, float]  # a tail bound; or left, right, bottom, top

_PARAMETERS = ("unnormalized_widths", "unnormalized_heights", "unnormalized_derivatives")


def check_rq_parameters(
    groups: tuple[Tensor, Tensor, Tensor], x: Tensor, tails: str | None
) -> tuple[int, torch.Size | None]:
    """The number of bins of separate parameters, and their leading shape where it is one."""
    for name, group in zip(_PARAMETERS, groups, strict=True):
        check_tensor(name, group)
        check_same_device(name, group, x)
        if group.dim() == 0:
            raise ValueError(f"{name} must have the bins as its last dimension, got a 0-d tensor.")
    widths, heights, derivatives = (group.shape for group in groups)
    num_bins = static(widths[-1])
    if isinstance(num_bins, int) and num_bins == 0:
        raise ValueError(
            f"{_PARAMETERS[0]} must have at least one bin, its last dimension, got shape "
            f"{tuple(widths)}."
        )
    num_derivatives = count_derivatives(num_bins, tails)
    for name, shape, expected in (
        (_PARAMETERS[1], heights, num_bins),
        (_PARAMETERS[2], derivatives, num_derivatives),
    ):
        if shape[-1] != expected:
            raise ValueError(
                f"{name} must have a last dimension of {expected} for {num_bins} bins with "
                f"tails={tails!r}, got shape {tuple(shape)}."
            )
    leading = widths[:-1]
    same = heights == widths and derivatives[:-1] == leading
    return num_bins, leading if same else None


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
    """An edge of the box, or a bound, on the device of x and in the kernels' compute dtype."""
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
