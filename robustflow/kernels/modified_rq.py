# mypy: allow-untyped-defs, allow-incomplete-defs
"""The modified rational-quadratic spline of Hong, Park and Chun: csrc/math/modified_rq.h.

arXiv:2212.04319: two bins in a box, slope 1 at its edges, identity outside, and a shift. Four
parameters an element: width, height, derivative and shift logits.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from robustflow.kernels.elementary import (
    exponential,
    saturated,
    saturating_exponential,
    sigmoid,
    soft_clip,
)
from robustflow.kernels.indexing import (
    SUM_NOTHING,
    add_planes,
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
from robustflow.kernels.rq_bin import rq_forward, rq_gradient, rq_inverse
from robustflow.kernels.run import Call, Sink, gradient, transform

# Accesses of 16 bytes: of four elements a thread in float32, of eight in half types. Gradients take
# twice the registers an element: four of any type. By reasoning; not yet measured on a GPU.
_BLOCK, _HALF_BLOCK, _GRADIENT_BLOCK, _NUM_WARPS = 512, 1024, 512, 4


@triton.jit
def modified_rq_bin(
    key,
    w,
    h,
    d,
    left,
    right,
    min_bin,
    min_derivative,
    inverse_bound,
    INVERSE: tl.constexpr,
    SOFTCLIP: tl.constexpr,
):
    """(bin, whether it is the second one, whether the element is outside, what gradients need).

    key: x, or y - shift for the inverse.
    """
    length = right - left
    free = 1.0 - 2.0 * min_bin
    w_value, w_complement = sigmoid(w)
    h_value, h_complement = sigmoid(h)
    if SOFTCLIP:
        clipped, _ = soft_clip(d, inverse_bound)
        factor = clipped
        derivative = exponential(clipped)
    else:
        factor = saturating_exponential(d)
        derivative = tl.fma(1.0 - min_derivative, factor, min_derivative)
    W0, W1 = length * tl.fma(free, w_value, min_bin), length * tl.fma(free, w_complement, min_bin)
    H0, H1 = length * tl.fma(free, h_value, min_bin), length * tl.fma(free, h_complement, min_bin)
    # From the nearer end, whose rounding is the smaller.
    x_mid = tl.where(W0 < W1, left + W0, right - W1)
    y_mid = tl.where(H0 < H1, left + H0, right - H1)
    upper = key >= y_mid if INVERSE else key >= x_mid
    spline_bin = (
        tl.where(upper, x_mid, left),
        tl.where(upper, right, x_mid),
        tl.where(upper, y_mid, left),
        tl.where(upper, right, y_mid),
        tl.where(upper, W1, W0),
        tl.where(upper, H1, H0),
        tl.where(upper, derivative, 1.0),
        tl.where(upper, 1.0, derivative),
    )
    outside = (key <= left) | (key >= right)  # asked this way, NaN is inside and stays NaN
    slopes = (w_value * w_complement, h_value * h_complement, factor, derivative)
    return spline_bin, upper, outside, slopes


@triton.jit
def modified_rq_kernel(
    x, params, y, logabsdet,
    left: tl.float64, right: tl.float64, min_bin: tl.float64, min_derivative: tl.float64,
    inverse_bound: tl.float64,
    groups, rows, inner, chunks, size1, size2,
    x0, x1, x2, x_inner,
    params0, params1, params2, params_inner, params_plane,
    y0, y1, y2, y_inner,
    logabsdet0, logabsdet1, logabsdet2, logabsdet_inner, logabsdet_part,
    INVERSE: tl.constexpr, SOFTCLIP: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr,
    TILES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_INNER: tl.constexpr,
    OUTER_DIMS: tl.constexpr, SUMS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    left = tl.full([], left, DTYPE)
    right = tl.full([], right, DTYPE)
    min_bin = tl.full([], min_bin, DTYPE)
    min_derivative = tl.full([], min_derivative, DTYPE)
    inverse_bound = tl.full([], inverse_bound, DTYPE)
    group, chunk, inner_block = locate_program(inner, chunks, BLOCK_INNER, SUMS, WIDE)
    mantissa = tl.full([BLOCK], 1.0, DTYPE)
    exponent = tl.full([BLOCK], 0.0, DTYPE)
    for t in range(TILES):
        index, mask = locate_tile(
            group, chunk * TILES + t, inner_block, groups, rows, inner, size1, size2,
            BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS,
        )  # fmt: skip
        at = offset(index, x0, x1, x2, x_inner, OUTER_DIMS)
        key = tl.load(x + at, mask=mask, other=0.0).to(DTYPE)
        at = offset(index, params0, params1, params2, params_inner, OUTER_DIMS)
        w, h, d, shift = load_planes(params, at, params_plane, mask, 4, 4, ROWS, BLOCK, DTYPE)
        if INVERSE:
            key = key - shift
        spline_bin, _, outside, _ = modified_rq_bin(
            key, w, h, d, left, right, min_bin, min_derivative, inverse_bound, INVERSE, SOFTCLIP
        )
        if INVERSE:
            value, slope = rq_inverse(spline_bin, key)
            value = tl.where(outside, key, value)
        else:
            value, slope = rq_forward(spline_bin, key)
            value = tl.where(outside, key, value) + shift
        slope = tl.where(outside, 1.0, slope)
        at = offset(index, y0, y1, y2, y_inner, OUTER_DIMS)
        tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)
        if SUMS == SUM_NOTHING:
            at = offset(index, logabsdet0, logabsdet1, logabsdet2, logabsdet_inner, OUTER_DIMS)
            log_slope = tl.log(slope)
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
def modified_rq_gradient_kernel(
    x, params, grad_y, grad_logabsdet, grad_x, grad_params,
    left: tl.float64, right: tl.float64, min_bin: tl.float64, min_derivative: tl.float64,
    inverse_bound: tl.float64,
    groups, rows, inner, chunks, size1, size2,
    x0, x1, x2, x_inner,
    params0, params1, params2, params_inner, params_plane,
    grad_y0, grad_y1, grad_y2, grad_y_inner,
    grad_logabsdet0, grad_logabsdet1, grad_logabsdet2, grad_logabsdet_inner,
    grad_x0, grad_x1, grad_x2, grad_x_inner,
    grad_params0, grad_params1, grad_params2, grad_params_inner, grad_params_plane,
    grad_params_part,
    INVERSE: tl.constexpr, SOFTCLIP: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr,
    GRAD_ROWS: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_INNER: tl.constexpr,
    OUTER_DIMS: tl.constexpr, SUMS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    left = tl.full([], left, DTYPE)
    right = tl.full([], right, DTYPE)
    min_bin = tl.full([], min_bin, DTYPE)
    min_derivative = tl.full([], min_derivative, DTYPE)
    inverse_bound = tl.full([], inverse_bound, DTYPE)
    size = (right - left) * (1.0 - 2.0 * min_bin)
    group, chunk, inner_block = locate_program(inner, chunks, BLOCK_INNER, SUMS, WIDE)
    sums = (
        tl.full([BLOCK], 0.0, DTYPE),
        tl.full([BLOCK], 0.0, DTYPE),
        tl.full([BLOCK], 0.0, DTYPE),
        tl.full([BLOCK], 0.0, DTYPE),
    )
    for t in range(TILES):
        index, mask = locate_tile(
            group, chunk * TILES + t, inner_block, groups, rows, inner, size1, size2,
            BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS,
        )  # fmt: skip
        at = offset(index, x0, x1, x2, x_inner, OUTER_DIMS)
        key = tl.load(x + at, mask=mask, other=0.0).to(DTYPE)
        at = offset(index, params0, params1, params2, params_inner, OUTER_DIMS)
        w, h, d, shift = load_planes(params, at, params_plane, mask, 4, 4, ROWS, BLOCK, DTYPE)
        at = offset(index, grad_y0, grad_y1, grad_y2, grad_y_inner, OUTER_DIMS)
        by_output = load_or_zero(grad_y, at, mask, key)
        at = offset(
            index, grad_logabsdet0, grad_logabsdet1, grad_logabsdet2, grad_logabsdet_inner,
            OUTER_DIMS,
        )  # fmt: skip
        by_logabsdet = load_or_zero(grad_logabsdet, at, mask, key)
        if INVERSE:
            key = key - shift
        spline_bin, upper, outside, factors = modified_rq_bin(
            key, w, h, d, left, right, min_bin, min_derivative, inverse_bound, INVERSE, SOFTCLIP
        )
        by_x, by_x0, by_x1, by_y0, by_y1, by_log_d0, by_log_d1, _, _ = rq_gradient(
            spline_bin, key, by_output, by_logabsdet, INVERSE
        )
        w_slope, h_slope, factor, derivative = factors
        # The inner knot is the right one of the first bin and the left one of the second.
        by_w = tl.where(upper, by_x0, by_x1) * (size * tl.where(saturated(w), 0.0, w_slope))
        by_h = tl.where(upper, by_y0, by_y1) * (size * tl.where(saturated(h), 0.0, h_slope))
        if SOFTCLIP:
            _, log_slope = soft_clip(d, inverse_bound)
        else:
            log_slope = (1.0 - min_derivative) * factor / derivative
            log_slope = tl.where(saturated(d), 0.0, log_slope)
        by_d = tl.where(upper, by_log_d0, by_log_d1) * log_slope
        by_x = tl.where(outside, by_output, by_x)
        by_shift = -by_x if INVERSE else by_output
        if grad_x is not None:
            at = offset(index, grad_x0, grad_x1, grad_x2, grad_x_inner, OUTER_DIMS)
            tl.store(grad_x + at, by_x.to(grad_x.dtype.element_ty), mask=mask)
        if grad_params is not None:
            made = (
                tl.where(outside, 0.0, by_w),
                tl.where(outside, 0.0, by_h),
                tl.where(outside, 0.0, by_d),
                by_shift,
            )
            if SUMS == SUM_NOTHING:
                at = offset(
                    index, grad_params0, grad_params1, grad_params2, grad_params_inner, OUTER_DIMS
                )
                store_planes(grad_params, at, grad_params_plane, mask, made, 4, 4, GRAD_ROWS, BLOCK)
            else:
                sums = add_planes(sums, made, mask, 4)
    if SUMS != SUM_NOTHING:
        index, mask = locate_sums(
            group, chunk, inner_block, groups, rows, inner, size1, size2,
            BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS,
        )  # fmt: skip
        at = offset(index, grad_params0, grad_params1, grad_params2, grad_params_inner, OUTER_DIMS)
        at += part_offset(chunk, grad_params_part, SUMS)
        store_sums(grad_params, at, grad_params_plane, mask, sums, 4, BLOCK, BLOCK_INNER, SUMS)


def modified_rq(
    x: Tensor,
    params: Tensor,
    inverse: bool,
    left: float,
    right: float,
    min_bin: float,
    min_derivative: float,
    softclip: bool,
    batch_dims: int,
) -> tuple[Tensor, Tensor]:
    """:func:`robustflow.reference.modified_rq` by a Triton kernel."""
    config = (left, right, min_bin, min_derivative, -1.0 / math.log(min_derivative))

    def run(call: Call, y: Tensor, logabsdet: Sink) -> None:
        arguments = (
            *(call.x, call.params[0], y, logabsdet.data),
            *config,
            *call.plan.geometry(),
            *call.strides(call.x),
            *call.planes(call.params[0]),
            *call.strides(y),
            *call.sums(logabsdet),
        )
        constants = {
            "INVERSE": inverse,
            "SOFTCLIP": softclip,
            "ROWS": call.rows(call.params[0]),
            **call.constants(),
        }
        launch(modified_rq_kernel, call.plan.programs, arguments, constants, _NUM_WARPS)

    block = _HALF_BLOCK if params.element_size() == 2 else _BLOCK
    return transform(x, (params,), None, batch_dims, block, run)


def modified_rq_backward(
    grad_y: Tensor | None,
    grad_logabsdet: Tensor | None,
    x: Tensor,
    params: Tensor,
    inverse: bool,
    left: float,
    right: float,
    min_bin: float,
    min_derivative: float,
    softclip: bool,
    batch_dims: int,
    needed: int,
) -> tuple[Tensor, ...]:
    """Gradients by x and params; bit i of ``needed`` asks for gradient i, else it is empty."""
    config = (left, right, min_bin, min_derivative, -1.0 / math.log(min_derivative))

    def run(
        call: Call,
        grad_y: Tensor | None,
        grad_logabsdet: Tensor | None,
        grad_x: Tensor | None,
        sinks: tuple[Sink, ...],
    ) -> None:
        arguments = (
            *(call.x, call.params[0], grad_y, grad_logabsdet, grad_x, sinks[0].data),
            *config,
            *call.plan.geometry(),
            *call.strides(call.x),
            *call.planes(call.params[0]),
            *call.strides(grad_y),
            *call.strides(grad_logabsdet),
            *call.strides(grad_x),
            *call.plane_sums(sinks[0]),
        )
        constants = {
            "INVERSE": inverse,
            "SOFTCLIP": softclip,
            "ROWS": call.rows(call.params[0]),
            "GRAD_ROWS": call.rows(sinks[0]),
            **call.constants(),
        }
        launch(modified_rq_gradient_kernel, call.plan.programs, arguments, constants, _NUM_WARPS)

    wanted = (bool(needed & 1), bool(needed & 2))
    return gradient(grad_y, grad_logabsdet, x, (params,), None, wanted, _GRADIENT_BLOCK, run)
