"""Shared by the launchers: allocation, the plan, sums, and calls that need several launches.

Tensors are in canonical form (robustflow/ops): x of any shape S, parameters whose last dimension is
the parameter axis and whose others equal S or are 1. All are read and written through their
strides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from robustflow.kernels.plan import (
    Plan,
    Strides,
    dense_like,
    make_plan,
    operand_strides,
    order_of,
    slabs,
)
from robustflow.kernels.sums import add_partial_sums

_WIDEST = 8
"""Numbers that one access may move: 16 bytes of a half type."""


@dataclass(frozen=True)
class Sink:
    """An output of a kernel: sums, or values element by element.

    ``strides`` are over the dimensions of x, ``plane`` between the parameters of one element, and
    ``part`` from one partial sum to the next.
    """

    data: Tensor | None
    strides: Strides
    plane: int = 0
    part: int = 0


NO_SINK = Sink(None, ())


@dataclass(frozen=True)
class Call:
    """The tensors of one launch, and their strides for the kernel."""

    plan: Plan
    x: Tensor
    params: tuple[Tensor, ...]
    constant: Tensor | None
    dtype: torch.dtype

    def strides(self, tensor: Tensor | None) -> Strides:
        """(outer 0, outer 1, outer 2, inner); zeros for a tensor that is not there."""
        if tensor is None:
            return 0, 0, 0, 0
        return self.plan.strides(operand_strides(tensor, self.x.shape))

    def planes(self, tensor: Tensor | None) -> Strides:
        """Strides of a parameter tensor, and the distance between an element's parameters."""
        return (*self.strides(tensor), 0 if tensor is None else tensor.stride(-1))

    def sums(self, sink: Sink) -> Strides:
        """Strides of log-determinants, and the distance between partial sums."""
        return (*self.plan.strides(sink.strides), sink.part)

    def plane_sums(self, sink: Sink) -> Strides:
        """Strides of a gradient, between an element's parameters, and between partial sums."""
        if sink.data is None:
            return 0, 0, 0, 0, 0, 0
        return (*self.plan.strides(sink.strides), sink.plane, sink.part)

    def rows(self, *tensors: Tensor | Sink | None) -> int:
        """0 unless the parameters of each element are adjacent in all of these tensors.

        Otherwise the largest power of two of which the offset of every element is a multiple: the
        most numbers that a single access may move.
        """
        aligned = _WIDEST
        for tensor in tensors:
            if isinstance(tensor, Sink):
                plane, strides = tensor.plane, (*self.plan.strides(tensor.strides), tensor.part)
                there = tensor.data is not None
            else:
                there = tensor is not None
                plane = tensor.stride(-1) if tensor is not None else 0
                strides = self.strides(tensor)
            if there:
                aligned = math.gcd(aligned, *strides) if plane == 1 and aligned else 0
        return aligned

    def constants(self) -> dict[str, Any]:
        """Compile-time arguments of every kernel."""
        return {"DTYPE": _TRITON_DTYPES[self.dtype], **self.plan.constants()}


_TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}

RunTransform = Callable[[Call, Tensor, Sink], None]
RunGradient = Callable[[Call, Tensor | None, Tensor | None, Tensor | None, tuple[Sink, ...]], None]


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32."""
    has_float64 = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if has_float64 else torch.float32


def transform(
    x: Tensor,
    params: tuple[Tensor, ...],
    constant: Tensor | None,
    batch_dims: int,
    block: int,
    run: RunTransform,
) -> tuple[Tensor, Tensor]:
    """(y, logabsdet) by a forward kernel, which ``run(call, y, logabsdet)`` launches."""
    dims = x.dim()
    if not 0 <= batch_dims <= dims:
        raise ValueError(f"batch_dims must lie between 0 and x's {dims} dimensions.")
    dtype = compute_dtype(x, *params, constant)
    y = dense_like(x)
    if batch_dims == dims:
        logabsdet = dense_like(x, dtype)
        _transform_each(x, params, constant, y, logabsdet, block, run)
        return y, logabsdet
    total = x.new_empty(x.shape[:batch_dims], dtype=dtype)
    if x.numel() == 0:
        return y, total.zero_()
    summed = range(batch_dims, dims)
    strides = (*total.stride(), *(0 for _ in summed))
    plan = _plan(x.shape, y.stride(), (x, y, *params, constant), params, block, [strides], summed)
    if plan is None:  # rare: without sums first, then torch's sum
        logabsdet = dense_like(x, dtype)
        _transform_each(x, params, constant, y, logabsdet, block, run)
        return y, logabsdet.sum(dim=tuple(summed))
    partial = total if plan.parts == 1 else total.new_empty((plan.parts, *total.shape))
    run(Call(plan, x, params, constant, dtype), y, Sink(partial, strides, 0, total.numel()))
    if plan.parts > 1:
        add_partial_sums(partial, total)
    return y, total


def gradient(
    grad_y: Tensor | None,
    grad_logabsdet: Tensor | None,
    x: Tensor,
    params: tuple[Tensor, ...],
    constant: Tensor | None,
    needed: Sequence[bool],
    block: int,
    run: RunGradient,
    sums: bool = True,
) -> tuple[Tensor, ...]:
    """Gradients by x and by each tensor of parameters; one that is not needed is empty.

    Args:
        grad_y, grad_logabsdet: cotangents of S and of S[:batch_dims], any strides; None is zero.
        needed: for x and each of ``params``.
        run: ``run(call, grad_y, grad_logabsdet, grad_x, sinks)`` launches a gradient kernel.
        sums: whether that kernel can add up gradients of shared parameters.
    """
    dims, shape = x.dim(), x.shape
    while grad_logabsdet is not None and grad_logabsdet.dim() < dims:
        grad_logabsdet = grad_logabsdet.unsqueeze(-1)
    grad_x = dense_like(x) if needed[0] else None
    grads = tuple(
        dense_like(p) if need else None for p, need in zip(params, needed[1:], strict=True)
    )
    out = tuple(x.new_empty(0) if t is None else t for t in (grad_x, *grads))
    if x.numel() == 0:
        return tuple(t.zero_() for t in out)
    dtype = compute_dtype(x, *params, constant)
    needing_grad = [p for p, grad in zip(params, grads, strict=True) if grad is not None]
    shared = [{d for d in range(dims) if p.shape[d] != shape[d]} for p in needing_grad]
    summed = shared[0] if shared else set()
    tensors = (grad_y, grad_logabsdet, x, *params, constant, grad_x, *grads)
    plan = None
    if all(each == summed for each in shared) and (sums or not summed):
        order = order_of(x) if grad_x is None else grad_x.stride()
        plan = _plan(shape, order, tensors, params, block, [], sorted(summed) or None, False)
    if plan is not None:
        sinks = tuple(_sink(grad, shape, plan.parts, dtype) for grad in grads)
        run(Call(plan, x, params, constant, dtype), grad_y, grad_logabsdet, grad_x, sinks)
        for sink, grad in zip(sinks, grads, strict=True):
            if plan.parts > 1 and grad is not None and sink.data is not None:
                add_partial_sums(sink.data, grad)
        return out
    # Gradients at full size first.
    full = tuple(
        grad
        if grad is None or grad.shape[:-1] == shape
        else grad.new_empty((*shape, grad.shape[-1]), dtype=dtype)
        for grad in grads
    )
    _gradient_each(grad_y, grad_logabsdet, x, params, constant, grad_x, full, block, run)
    for grad, dense in zip(grads, full, strict=True):
        if grad is not None and dense is not None and dense is not grad:
            own = tuple(d for d in range(dims) if grad.shape[d] != shape[d])
            grad.copy_(dense.sum(dim=own, keepdim=True))
    return out


def _sink(grad: Tensor | None, shape: Sequence[int], parts: int, dtype: torch.dtype) -> Sink:
    if grad is None:
        return Sink(None, (0,) * len(shape))
    data = grad if parts == 1 else grad.new_empty((parts, grad.numel()), dtype=dtype)
    return Sink(data, operand_strides(grad, shape), grad.stride(-1), grad.numel())


def _plan(
    shape: Sequence[int],
    order: Strides,
    tensors: Sequence[Tensor | None],
    params: Sequence[Tensor | None],
    block: int,
    more: Sequence[Strides] = (),
    summed: Sequence[int] | None = None,
    independent: bool = True,
) -> Plan | None:
    operands = [operand_strides(t, shape) for t in tensors if t is not None]
    planes = max((abs(p.stride(-1)) * p.shape[-1] for p in params if p is not None), default=1)
    return make_plan(shape, order, [*operands, *more], summed, block, planes, independent)


def _transform_each(
    x: Tensor,
    params: tuple[Tensor, ...],
    constant: Tensor | None,
    y: Tensor,
    logabsdet: Tensor,
    block: int,
    run: RunTransform,
) -> None:
    """Without sums, in as many launches as it takes."""
    if x.numel() == 0:
        return

    def plan_of(shape: Sequence[int], tensors: Sequence[Tensor | None]) -> Plan | None:
        return _plan(shape, _present(tensors[0]).stride(), tensors, tensors[4:], block)

    for plan, (y_, logabsdet_, x_, box_, *params_) in slabs(
        x.shape, (y, logabsdet, x, constant, *params), plan_of
    ):
        call = Call(plan, _present(x_), tuple(map(_present, params_)), box_, logabsdet.dtype)
        run(call, _present(y_), Sink(logabsdet_, _present(logabsdet_).stride()))


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _gradient_each(
    grad_y: Tensor | None,
    grad_logabsdet: Tensor | None,
    x: Tensor,
    params: tuple[Tensor, ...],
    constant: Tensor | None,
    grad_x: Tensor | None,
    grads: tuple[Tensor | None, ...],
    block: int,
    run: RunGradient,
) -> None:
    """Without sums, in as many launches as it takes; gradients of parameters at full size."""
    dtype = compute_dtype(x, *params, constant)
    count = len(params)

    def plan_of(shape: Sequence[int], tensors: Sequence[Tensor | None]) -> Plan | None:
        order = tensors[4]
        strides = order_of(_present(tensors[0])) if order is None else order.stride()
        return _plan(shape, strides, tensors, tensors[5:], block)

    for plan, (x_, grad_y_, grad_logabsdet_, box_, grad_x_, *rest) in slabs(
        x.shape, (x, grad_y, grad_logabsdet, constant, grad_x, *params, *grads), plan_of
    ):
        x_ = _present(x_)
        call = Call(plan, x_, tuple(map(_present, rest[:count])), box_, dtype)
        sinks = tuple(_sink(grad, x_.shape, 1, dtype) for grad in rest[count:])
        run(call, grad_y_, grad_logabsdet_, grad_x_, sinks)
