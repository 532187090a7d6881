# mypy: allow-untyped-defs, allow-incomplete-defs
"""The conditional affine transform: y = (x + shift) s, or x s + shift: csrc/math/affine.h.

Two parameters an element: shift and scale logit.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from robustflow.kernels.elementary import (
    LOGIT_LIMIT,
    arctangent,
    at_least,
    at_most,
    hyperbolic_tangent,
    saturated,
    saturating_exponential,
    sigmoid,
    soft_clip,
    softplus,
)
from robustflow.kernels.indexing import (
    SUM_NOTHING,
    load_or_zero,
    load_planes,
    locate_program,
    locate_sums,
    locate_tile,
    log_of_product,
    multiply_log,
    offset,
    part_offset,
    store_planes,
    store_sums,
    sum_tile,
)
from robustflow.kernels.launch import launch
from robustflow.kernels.run import Call, Sink, gradient, transform

# Accesses of 16 bytes: of four elements a thread in float32, of eight in half types. By reasoning;
# not yet measured on a GPU.
_BLOCK, _HALF_BLOCK, _NUM_WARPS = 512, 1024, 4

# The numbers are those of the operators' schema (robustflow/ops/transforms.py).
SCALE_SIGMOID = tl.constexpr(0)  # sigmoid(a + 2) + eps: SRFlow, LLFlow
SCALE_EXP = tl.constexpr(1)  # exp(a)
SCALE_SOFTPLUS = tl.constexpr(2)  # softplus(a) + eps
SCALE_ATAN_EXP = tl.constexpr(3)  # exp(clamp 0.636 atan(a)): FrEIA
SCALE_TANH_EXP = tl.constexpr(4)  # exp(clamp tanh(a)): RealNVP, FrEIA's AllInOneBlock
SCALE_SOFTCLIP_EXP = tl.constexpr(5)  # exp(a / (1 + |a| / clamp)): zuko


@triton.jit
def affine_exponent(a, clamp, SCALE: tl.constexpr):
    """(exponent, slope) of a scale that is an exponential."""
    if SCALE == SCALE_ATAN_EXP:
        value, slope = arctangent(a)
        return 0.636 * clamp * value, 0.636 * clamp * slope
    elif SCALE == SCALE_TANH_EXP:
        value, slope = hyperbolic_tangent(a)
        return clamp * value, clamp * slope
    elif SCALE == SCALE_SOFTCLIP_EXP:
        return soft_clip(a, 1.0 / clamp)
    else:
        return a, tl.zeros_like(a) + 1.0


@triton.jit
def affine_scale(a, eps, clamp, SCALE: tl.constexpr):
    """(scale before the reciprocal, derivative of its logarithm by the logit)."""
    if SCALE == SCALE_SIGMOID:
        logit = a + 2.0
        value, complement = sigmoid(logit)
        scale = value + eps
        return scale, tl.where(saturated(logit), 0.0, value * complement) / scale
    elif SCALE == SCALE_SOFTPLUS:
        value, slope = softplus(at_least(-LOGIT_LIMIT, a))
        scale = value + eps
        return scale, tl.where(a < -LOGIT_LIMIT, 0.0, slope / scale)
    else:
        exponent, slope = affine_exponent(a, clamp, SCALE)
        return saturating_exponential(exponent), tl.where(saturated(exponent), 0.0, slope)


@triton.jit
def affine_log_slope(a, slope, clamp, SCALE: tl.constexpr, RECIPROCAL: tl.constexpr):
    """logabsdet of the forward transform, given its slope."""
    if SCALE == SCALE_SIGMOID or SCALE == SCALE_SOFTPLUS:  # noqa: SIM109  (Triton knows no `in`)
        return tl.log(slope)
    else:
        exponent, _ = affine_exponent(a, clamp, SCALE)
        e = at_most(LOGIT_LIMIT, at_least(-LOGIT_LIMIT, exponent))
        return tl.where(slope == slope, -e if RECIPROCAL else e, slope)


@triton.jit
def affine_kernel(
    x, shift, logit, y, logabsdet,
    eps: tl.float64, clamp: tl.float64,
    groups, rows, inner, chunks, size1, size2,
    x0, x1, x2, x_inner,
    shift0, shift1, shift2, shift_inner, shift_plane,
    logit0, logit1, logit2, logit_inner,
    y0, y1, y2, y_inner,
    logabsdet0, logabsdet1, logabsdet2, logabsdet_inner, logabsdet_part,
    INVERSE: tl.constexpr, SCALE: tl.constexpr, SHIFT_FIRST: tl.constexpr,
    RECIPROCAL: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr,
    TILES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_INNER: tl.constexpr,
    OUTER_DIMS: tl.constexpr, SUMS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``logit`` is None where shift and logit are two planes of ``shift``."""
    eps = tl.full([], eps, DTYPE)
    clamp = tl.full([], clamp, DTYPE)
    group, chunk, inner_block = locate_program(inner, chunks, BLOCK_INNER, SUMS, WIDE)
    mantissa = tl.full([BLOCK], 1.0, DTYPE)
    exponent = tl.full([BLOCK], 0.0, DTYPE)
    for t in range(TILES):
        index, mask = locate_tile(
            group, chunk * TILES + t, inner_block, groups, rows, inner, size1, size2,
            BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS,
        )  # fmt: skip
        at = offset(index, x0, x1, x2, x_inner, OUTER_DIMS)
        value = tl.load(x + at, mask=mask, other=0.0).to(DTYPE)
        b, a = load_affine(
            shift, logit, index, mask,
            shift0, shift1, shift2, shift_inner, shift_plane,
            logit0, logit1, logit2, logit_inner,
            ROWS, BLOCK, OUTER_DIMS, DTYPE,
        )  # fmt: skip
        s, _ = affine_scale(a, eps, clamp, SCALE)
        # NaN in an element is NaN in its log-determinant too, which depends on the logit alone.
        slope = tl.where(value == value, 1.0 / s if RECIPROCAL else s, value)
        if SHIFT_FIRST != INVERSE:
            value = value - b if INVERSE else value + b
        value = value / s if RECIPROCAL != INVERSE else value * s
        if SHIFT_FIRST == INVERSE:
            value = value - b if INVERSE else value + b
        at = offset(index, y0, y1, y2, y_inner, OUTER_DIMS)
        tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)
        if SUMS == SUM_NOTHING:
            log_slope = affine_log_slope(a, slope, clamp, SCALE, RECIPROCAL)
            at = offset(index, logabsdet0, logabsdet1, logabsdet2, logabsdet_inner, OUTER_DIMS)
            tl.store(logabsdet + at, -log_slope if INVERSE else log_slope, mask=mask)
        else:
            mantissa, exponent = multiply_log(mantissa, exponent, tl.where(mask, slope, 1.0))
    if SUMS != SUM_NOTHING:
        total = sum_tile(log_of_product(mantissa, exponent), BLOCK, BLOCK_INNER, SUMS)
        index, mask = locate_sums(
            group, chunk, inner_block, groups, rows, inner, size1, size2,
            BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS,
        )  # fmt: skip
        at = offset(index, logabsdet0, logabsdet1, logabsdet2, logabsdet_inner, OUTER_DIMS)
        at += part_offset(chunk, logabsdet_part, SUMS)
        tl.store(logabsdet + at, -total if INVERSE else total, mask=mask)


@triton.jit
def affine_gradient_kernel(
    x, shift, logit, grad_y, grad_logabsdet, grad_x, grad_shift, grad_logit,
    eps: tl.float64, clamp: tl.float64,
    groups, rows, inner, chunks, size1, size2,
    x0, x1, x2, x_inner,
    shift0, shift1, shift2, shift_inner, shift_plane,
    logit0, logit1, logit2, logit_inner,
    grad_y0, grad_y1, grad_y2, grad_y_inner,
    grad_logabsdet0, grad_logabsdet1, grad_logabsdet2, grad_logabsdet_inner,
    grad_x0, grad_x1, grad_x2, grad_x_inner,
    grad_shift0, grad_shift1, grad_shift2, grad_shift_inner, grad_shift_plane, grad_shift_part,
    grad_logit0, grad_logit1, grad_logit2, grad_logit_inner, grad_logit_part,
    INVERSE: tl.constexpr, SCALE: tl.constexpr, SHIFT_FIRST: tl.constexpr,
    RECIPROCAL: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr, GRAD_ROWS: tl.constexpr,
    TILES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_INNER: tl.constexpr,
    OUTER_DIMS: tl.constexpr, SUMS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    eps = tl.full([], eps, DTYPE)
    clamp = tl.full([], clamp, DTYPE)
    group, chunk, inner_block = locate_program(inner, chunks, BLOCK_INNER, SUMS, WIDE)
    shift_sum = tl.full([BLOCK], 0.0, DTYPE)
    logit_sum = tl.full([BLOCK], 0.0, DTYPE)
    for t in range(TILES):
        index, mask = locate_tile(
            group, chunk * TILES + t, inner_block, groups, rows, inner, size1, size2,
            BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS,
        )  # fmt: skip
        at = offset(index, x0, x1, x2, x_inner, OUTER_DIMS)
        key = tl.load(x + at, mask=mask, other=0.0).to(DTYPE)
        b, a = load_affine(
            shift, logit, index, mask,
            shift0, shift1, shift2, shift_inner, shift_plane,
            logit0, logit1, logit2, logit_inner,
            ROWS, BLOCK, OUTER_DIMS, DTYPE,
        )  # fmt: skip
        at = offset(index, grad_y0, grad_y1, grad_y2, grad_y_inner, OUTER_DIMS)
        by_y = load_or_zero(grad_y, at, mask, key)
        at = offset(
            index, grad_logabsdet0, grad_logabsdet1, grad_logabsdet2, grad_logabsdet_inner,
            OUTER_DIMS,
        )  # fmt: skip
        by_logabsdet = load_or_zero(grad_logabsdet, at, mask, key)
        s, log_slope = affine_scale(a, eps, clamp, SCALE)
        if SHIFT_FIRST != INVERSE:
            key = key - b if INVERSE else key + b
        # moved is the scale's share of the output: d moved / d log s = +-moved.
        moved = key / s if RECIPROCAL != INVERSE else key * s
        by_x = by_y / s if RECIPROCAL != INVERSE else by_y * s
        by_log = tl.fma(by_y, moved, by_logabsdet)
        by_logit = (-by_log if RECIPROCAL != INVERSE else by_log) * log_slope
        by_shift = by_y if SHIFT_FIRST == INVERSE else by_x
        by_shift = -by_shift if INVERSE else by_shift
        if grad_x is not None:
            at = offset(index, grad_x0, grad_x1, grad_x2, grad_x_inner, OUTER_DIMS)
            tl.store(grad_x + at, by_x.to(grad_x.dtype.element_ty), mask=mask)
        if SUMS != SUM_NOTHING:
            shift_sum += tl.where(mask, by_shift, 0.0)
            logit_sum += tl.where(mask, by_logit, 0.0)
        else:
            if grad_shift is not None:
                at = offset(
                    index, grad_shift0, grad_shift1, grad_shift2, grad_shift_inner, OUTER_DIMS
                )
                if logit is None:
                    store_planes(
                        grad_shift, at, grad_shift_plane, mask, (by_shift, by_logit), 2, 2,
                        GRAD_ROWS, BLOCK,
                    )  # fmt: skip
                else:
                    tl.store(grad_shift + at, by_shift.to(grad_shift.dtype.element_ty), mask=mask)
            if grad_logit is not None:
                at = offset(
                    index, grad_logit0, grad_logit1, grad_logit2, grad_logit_inner, OUTER_DIMS
                )
                tl.store(grad_logit + at, by_logit.to(grad_logit.dtype.element_ty), mask=mask)
    if SUMS != SUM_NOTHING:
        index, mask = locate_sums(
            group, chunk, inner_block, groups, rows, inner, size1, size2,
            BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS,
        )  # fmt: skip
        if grad_shift is not None:
            at = offset(index, grad_shift0, grad_shift1, grad_shift2, grad_shift_inner, OUTER_DIMS)
            at += part_offset(chunk, grad_shift_part, SUMS)
            if logit is None:
                store_sums(
                    grad_shift, at, grad_shift_plane, mask, (shift_sum, logit_sum), 2, BLOCK,
                    BLOCK_INNER, SUMS,
                )  # fmt: skip
            else:
                store_sums(grad_shift, at, 0, mask, (shift_sum,), 1, BLOCK, BLOCK_INNER, SUMS)
        if grad_logit is not None:
            at = offset(index, grad_logit0, grad_logit1, grad_logit2, grad_logit_inner, OUTER_DIMS)
            at += part_offset(chunk, grad_logit_part, SUMS)
            store_sums(grad_logit, at, 0, mask, (logit_sum,), 1, BLOCK, BLOCK_INNER, SUMS)


@triton.jit
def load_affine(
    shift, logit, index, mask,
    shift0, shift1, shift2, shift_inner, shift_plane,
    logit0, logit1, logit2, logit_inner,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, OUTER_DIMS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """(shift, logit) of a tile's elements, from one tensor or from two."""
    at = offset(index, shift0, shift1, shift2, shift_inner, OUTER_DIMS)
    if logit is None:
        return load_planes(shift, at, shift_plane, mask, 2, 2, ROWS, BLOCK, DTYPE)
    else:
        b = tl.load(shift + at, mask=mask, other=0.0).to(DTYPE)
        at = offset(index, logit0, logit1, logit2, logit_inner, OUTER_DIMS)
        return b, tl.load(logit + at, mask=mask, other=0.0).to(DTYPE)


def affine(
    x: Tensor,
    params: Tensor,
    log_scale: Tensor | None,
    inverse: bool,
    scale: int,
    eps: float,
    clamp: float,
    shift_first: bool,
    reciprocal: bool,
    batch_dims: int,
) -> tuple[Tensor, Tensor]:
    """:func:`robustflow.reference.affine` by a Triton kernel."""

    def run(call: Call, y: Tensor, logabsdet: Sink) -> None:
        shift, logit = _parts(call)
        arguments = (
            *(call.x, shift, logit, y, logabsdet.data),
            *(eps, clamp),
            *call.plan.geometry(),
            *call.strides(call.x),
            *call.planes(shift),
            *call.strides(logit),
            *call.strides(y),
            *call.sums(logabsdet),
        )
        constants = {
            "INVERSE": inverse,
            "SCALE": scale,
            "SHIFT_FIRST": shift_first,
            "RECIPROCAL": reciprocal,
            "ROWS": call.rows(shift),
            **call.constants(),
        }
        launch(affine_kernel, call.plan.programs, arguments, constants, _NUM_WARPS)

    tensors = _tensors(params, log_scale)
    return transform(x, tensors, None, batch_dims, _block(params), run)


def affine_backward(
    grad_y: Tensor | None,
    grad_logabsdet: Tensor | None,
    x: Tensor,
    params: Tensor,
    log_scale: Tensor | None,
    inverse: bool,
    scale: int,
    eps: float,
    clamp: float,
    shift_first: bool,
    reciprocal: bool,
    batch_dims: int,
    needed: int,
) -> tuple[Tensor, ...]:
    """Gradients by x, params and log_scale; bit i of ``needed`` asks for i, else it is empty."""

    def run(
        call: Call,
        grad_y: Tensor | None,
        grad_logabsdet: Tensor | None,
        grad_x: Tensor | None,
        sinks: tuple[Sink, ...],
    ) -> None:
        shift, logit = _parts(call)
        shift_sink, logit_sink = sinks if len(sinks) == 2 else (*sinks, _no_sink(call.x))
        arguments = (
            *(call.x, shift, logit, grad_y, grad_logabsdet, grad_x),
            *(shift_sink.data, logit_sink.data),
            *(eps, clamp),
            *call.plan.geometry(),
            *call.strides(call.x),
            *call.planes(shift),
            *call.strides(logit),
            *call.strides(grad_y),
            *call.strides(grad_logabsdet),
            *call.strides(grad_x),
            *call.plane_sums(shift_sink),
            *call.sums(logit_sink),
        )
        constants = {
            "INVERSE": inverse,
            "SCALE": scale,
            "SHIFT_FIRST": shift_first,
            "RECIPROCAL": reciprocal,
            "ROWS": call.rows(shift),
            "GRAD_ROWS": call.rows(shift_sink),
            **call.constants(),
        }
        launch(affine_gradient_kernel, call.plan.programs, arguments, constants, _NUM_WARPS)

    tensors = _tensors(params, log_scale)
    wanted = tuple(bool(needed >> i & 1) for i in range(1 + len(tensors)))
    out = gradient(grad_y, grad_logabsdet, x, tensors, None, wanted, _block(params), run)
    return out if log_scale is not None else (*out, x.new_empty(0))


def _block(params: Tensor) -> int:
    return _HALF_BLOCK if params.element_size() == 2 else _BLOCK


def _tensors(params: Tensor, log_scale: Tensor | None) -> tuple[Tensor, ...]:
    return (params,) if log_scale is None else (params, log_scale)


def _parts(call: Call) -> tuple[Tensor, Tensor | None]:
    return call.params[0], call.params[1] if len(call.params) == 2 else None


def _no_sink(x: Tensor) -> Sink:
    return Sink(None, (0,) * x.dim())
