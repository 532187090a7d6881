# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
# ruff: noqa: RUF005  (Triton knows no (*a, b))
"""The rational-quadratic spline with K bins: kernels and launchers around rq_spline.py."""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from robustflow.kernels.elementary import at_least, at_most
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
from robustflow.kernels.rq_spline import (
    PARAMETRIZATION_SOFTMAX,
    TAILS_CIRCULAR,
    TAILS_LINEAR,
    TAILS_NONE,
    rq_axis,
    rq_derivative_gradient,
    rq_first_bin,
    rq_found_bin,
    rq_outside,
    rq_pass_knot,
    rq_search,
    rq_size,
    rq_size_factors,
    rq_size_gradient,
    rq_sizes,
)
from robustflow.kernels.run import Call, Sink, gradient, transform

# One element a thread: its 3 K logits and sizes are in the thread's registers. By reasoning;
# nothing has been measured on a GPU yet.
_BLOCK, _NUM_WARPS = 128, 4
MAX_BINS_IN_REGISTERS = 32
"""3 K values and what is made of them fill a thread's 255 registers a little beyond."""


@triton.jit
def rq_kernel(
    x, widths, heights, derivatives, box, y, logabsdet,
    left: tl.float64, right: tl.float64, bottom: tl.float64, top: tl.float64,
    min_bin_width: tl.float64, min_bin_height: tl.float64, min_derivative: tl.float64,
    logit_scale: tl.float64, inverse_bound: tl.float64,
    groups, rows, inner, chunks, size1, size2,
    x0, x1, x2, x_inner,
    widths0, widths1, widths2, widths_inner, widths_plane,
    heights0, heights1, heights2, heights_inner, heights_plane,
    derivatives0, derivatives1, derivatives2, derivatives_inner, derivatives_plane,
    box0, box1, box2, box_inner, box_plane,
    y0, y1, y2, y_inner,
    logabsdet0, logabsdet1, logabsdet2, logabsdet_inner, logabsdet_part,
    NUM_BINS: tl.constexpr, NUM_DERIVATIVES: tl.constexpr, PADDED: tl.constexpr,
    IN_REGISTERS: tl.constexpr, INVERSE: tl.constexpr, TAILS: tl.constexpr,
    PARAMETRIZATION: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr,
    ROWS_D: tl.constexpr,
    TILES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_INNER: tl.constexpr,
    OUTER_DIMS: tl.constexpr, SUMS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``heights`` and ``derivatives`` are None where they are further planes of ``widths``."""
    min_bin_width = tl.full([], min_bin_width, DTYPE)
    min_bin_height = tl.full([], min_bin_height, DTYPE)
    min_derivative = tl.full([], min_derivative, DTYPE)
    logit_scale = tl.full([], logit_scale, DTYPE)
    inverse_bound = tl.full([], inverse_bound, DTYPE)
    if heights is None:
        heights = widths + NUM_BINS * widths_plane
        derivatives = widths + 2 * NUM_BINS * widths_plane
    elif derivatives is None:  # one bin and linear tails have none
        derivatives = widths
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
        at = offset(index, box0, box1, box2, box_inner, OUTER_DIMS)
        x_box, y_box = rq_load_box(box, at, box_plane, mask, left, right, bottom, top, BLOCK, DTYPE)
        at_w = offset(index, widths0, widths1, widths2, widths_inner, OUTER_DIMS)
        at_h = offset(index, heights0, heights1, heights2, heights_inner, OUTER_DIMS)
        at_d = offset(
            index, derivatives0, derivatives1, derivatives2, derivatives_inner, OUTER_DIMS
        )
        if IN_REGISTERS:
            _, _, _, spline_bin, _, _, _ = rq_load_and_search(
                key, widths, heights, derivatives, at_w, at_h, at_d,
                widths_plane, heights_plane, derivatives_plane, mask, x_box, y_box,
                min_bin_width, min_bin_height, min_derivative, logit_scale, inverse_bound,
                NUM_BINS, NUM_DERIVATIVES, PADDED, INVERSE, TAILS, PARAMETRIZATION,
                ROWS, ROWS_D, BLOCK, DTYPE,
            )  # fmt: skip
        else:
            spline_bin, _, _, _, _ = rq_search_memory(
                key, widths, heights, derivatives, at_w, at_h, at_d,
                widths_plane, heights_plane, derivatives_plane, mask, x_box, y_box,
                min_bin_width, min_bin_height, min_derivative, logit_scale, inverse_bound,
                NUM_BINS, INVERSE, TAILS, PARAMETRIZATION, DTYPE,
            )  # fmt: skip
        if INVERSE:
            lower, upper = y_box
            least, most = x_box
            value, slope = rq_inverse(spline_bin, key)
        else:
            lower, upper = x_box
            least, most = y_box
            value, slope = rq_forward(spline_bin, key)
        outside = rq_outside(key, lower, upper, TAILS, x.dtype.element_ty)
        if TAILS != TAILS_LINEAR:  # an inner knot may be rounded past the end of the box
            value = at_least(least, at_most(most, value))
        if TAILS == TAILS_NONE:
            value = tl.where(outside, float("nan"), value)
            slope = tl.where(outside, float("nan"), slope)
        else:
            value = tl.where(outside, key, value)
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
def rq_gradient_kernel(
    x, widths, heights, derivatives, box, grad_y, grad_logabsdet,
    grad_x, grad_widths, grad_heights, grad_derivatives,
    left: tl.float64, right: tl.float64, bottom: tl.float64, top: tl.float64,
    min_bin_width: tl.float64, min_bin_height: tl.float64, min_derivative: tl.float64,
    logit_scale: tl.float64, inverse_bound: tl.float64,
    groups, rows, inner, chunks, size1, size2,
    x0, x1, x2, x_inner,
    widths0, widths1, widths2, widths_inner, widths_plane,
    heights0, heights1, heights2, heights_inner, heights_plane,
    derivatives0, derivatives1, derivatives2, derivatives_inner, derivatives_plane,
    box0, box1, box2, box_inner, box_plane,
    grad_y0, grad_y1, grad_y2, grad_y_inner,
    grad_logabsdet0, grad_logabsdet1, grad_logabsdet2, grad_logabsdet_inner,
    grad_x0, grad_x1, grad_x2, grad_x_inner,
    grad_widths0, grad_widths1, grad_widths2, grad_widths_inner, grad_widths_plane,
    grad_widths_part,
    grad_heights0, grad_heights1, grad_heights2, grad_heights_inner, grad_heights_plane,
    grad_heights_part,
    grad_derivatives0, grad_derivatives1, grad_derivatives2, grad_derivatives_inner,
    grad_derivatives_plane, grad_derivatives_part,
    NUM_BINS: tl.constexpr, NUM_DERIVATIVES: tl.constexpr, PADDED: tl.constexpr,
    IN_REGISTERS: tl.constexpr, INVERSE: tl.constexpr, TAILS: tl.constexpr,
    PARAMETRIZATION: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr,
    ROWS_D: tl.constexpr, GRAD_ROWS: tl.constexpr, GRAD_ROWS_D: tl.constexpr,
    TILES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_INNER: tl.constexpr,
    OUTER_DIMS: tl.constexpr, SUMS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Where ``heights`` is None, its gradients are further planes of that of ``widths`` too."""
    min_bin_width = tl.full([], min_bin_width, DTYPE)
    min_bin_height = tl.full([], min_bin_height, DTYPE)
    min_derivative = tl.full([], min_derivative, DTYPE)
    logit_scale = tl.full([], logit_scale, DTYPE)
    inverse_bound = tl.full([], inverse_bound, DTYPE)
    if heights is None:
        heights = widths + NUM_BINS * widths_plane
        derivatives = widths + 2 * NUM_BINS * widths_plane
        if grad_widths is not None:
            grad_heights = grad_widths + NUM_BINS * grad_widths_plane
            grad_derivatives = grad_widths + 2 * NUM_BINS * grad_widths_plane
    elif derivatives is None:  # one bin and linear tails have none
        derivatives = widths
    group, chunk, inner_block = locate_program(inner, chunks, BLOCK_INNER, SUMS, WIDE)
    zero = tl.full([BLOCK], 0.0, DTYPE)
    if SUMS != SUM_NOTHING:
        sum_w = ()
        sum_h = ()
        sum_d = ()
        for _ in tl.static_range(NUM_BINS):
            sum_w = sum_w + (zero,)
            sum_h = sum_h + (zero,)
        for _ in tl.static_range(NUM_DERIVATIVES):
            sum_d = sum_d + (zero,)
    for t in range(TILES):
        index, mask = locate_tile(
            group, chunk * TILES + t, inner_block, groups, rows, inner, size1, size2,
            BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS,
        )  # fmt: skip
        at = offset(index, x0, x1, x2, x_inner, OUTER_DIMS)
        key = tl.load(x + at, mask=mask, other=0.0).to(DTYPE)
        at = offset(index, grad_y0, grad_y1, grad_y2, grad_y_inner, OUTER_DIMS)
        by_output = load_or_zero(grad_y, at, mask, key)
        at = offset(
            index, grad_logabsdet0, grad_logabsdet1, grad_logabsdet2, grad_logabsdet_inner,
            OUTER_DIMS,
        )  # fmt: skip
        by_logabsdet = load_or_zero(grad_logabsdet, at, mask, key)
        at = offset(index, box0, box1, box2, box_inner, OUTER_DIMS)
        x_box, y_box = rq_load_box(box, at, box_plane, mask, left, right, bottom, top, BLOCK, DTYPE)
        at_w = offset(index, widths0, widths1, widths2, widths_inner, OUTER_DIMS)
        at_h = offset(index, heights0, heights1, heights2, heights_inner, OUTER_DIMS)
        at_d = offset(
            index, derivatives0, derivatives1, derivatives2, derivatives_inner, OUTER_DIMS
        )
        if IN_REGISTERS:
            w, h, sizes, spline_bin, place, slopes, totals = rq_load_and_search(
                key, widths, heights, derivatives, at_w, at_h, at_d,
                widths_plane, heights_plane, derivatives_plane, mask, x_box, y_box,
                min_bin_width, min_bin_height, min_derivative, logit_scale, inverse_bound,
                NUM_BINS, NUM_DERIVATIVES, PADDED, INVERSE, TAILS, PARAMETRIZATION,
                ROWS, ROWS_D, BLOCK, DTYPE,
            )  # fmt: skip
        else:
            spline_bin, place, slopes, totals, largest = rq_search_memory(
                key, widths, heights, derivatives, at_w, at_h, at_d,
                widths_plane, heights_plane, derivatives_plane, mask, x_box, y_box,
                min_bin_width, min_bin_height, min_derivative, logit_scale, inverse_bound,
                NUM_BINS, INVERSE, TAILS, PARAMETRIZATION, DTYPE,
            )  # fmt: skip
        if INVERSE:
            lower, upper = y_box
        else:
            lower, upper = x_box
        outside = rq_outside(key, lower, upper, TAILS, x.dtype.element_ty)
        by_x, by_x0, by_x1, by_y0, by_y1, by_log_d0, by_log_d1, by_xs, by_ys = rq_gradient(
            spline_bin, key, by_output, by_logabsdet, INVERSE
        )
        if grad_x is not None:
            at = offset(index, grad_x0, grad_x1, grad_x2, grad_x_inner, OUTER_DIMS)
            by_x = tl.where(outside, zero if TAILS == TAILS_NONE else by_output, by_x)
            tl.store(grad_x + at, by_x.to(grad_x.dtype.element_ty), mask=mask)
        bin_index, pre_x, own_x, post_x, pre_y, own_y, post_y, d0_slope, d1_slope = place
        x_slope, y_slope = slopes
        x_total, y_total = totals
        x_factors = rq_size_factors(
            x_slope, x_total, logit_scale, bin_index, pre_x, own_x, post_x,
            by_x0, by_x1, by_xs, NUM_BINS, PARAMETRIZATION,
        )  # fmt: skip
        y_factors = rq_size_factors(
            y_slope, y_total, logit_scale, bin_index, pre_y, own_y, post_y,
            by_y0, by_y1, by_ys, NUM_BINS, PARAMETRIZATION,
        )  # fmt: skip
        by_d0 = tl.where(outside, 0.0, by_log_d0 * d0_slope)
        by_d1 = tl.where(outside, 0.0, by_log_d1 * d1_slope)
        at_w = offset(
            index, grad_widths0, grad_widths1, grad_widths2, grad_widths_inner, OUTER_DIMS
        )
        at_h = offset(
            index, grad_heights0, grad_heights1, grad_heights2, grad_heights_inner, OUTER_DIMS
        )
        at_d = offset(
            index, grad_derivatives0, grad_derivatives1, grad_derivatives2,
            grad_derivatives_inner, OUTER_DIMS,
        )  # fmt: skip
        if IN_REGISTERS:
            x_sizes, y_sizes = sizes
            if grad_widths is not None:
                made = rq_size_gradients(
                    x_factors, x_sizes, w, bin_index, outside, logit_scale, inverse_bound,
                    NUM_BINS, PARAMETRIZATION,
                )  # fmt: skip
                if SUMS == SUM_NOTHING:
                    store_planes(
                        grad_widths, at_w, grad_widths_plane, mask, made, NUM_BINS, PADDED,
                        GRAD_ROWS, BLOCK,
                    )  # fmt: skip
                else:
                    sum_w = add_planes(sum_w, made, mask, NUM_BINS)
            if grad_heights is not None:
                made = rq_size_gradients(
                    y_factors, y_sizes, h, bin_index, outside, logit_scale, inverse_bound,
                    NUM_BINS, PARAMETRIZATION,
                )  # fmt: skip
                if SUMS == SUM_NOTHING:
                    store_planes(
                        grad_heights, at_h, grad_heights_plane, mask, made, NUM_BINS, PADDED,
                        GRAD_ROWS, BLOCK,
                    )  # fmt: skip
                else:
                    sum_h = add_planes(sum_h, made, mask, NUM_BINS)
            if NUM_DERIVATIVES > 0 and grad_derivatives is not None:
                made = ()
                for j in tl.static_range(NUM_DERIVATIVES):
                    made = made + (
                        rq_derivative_gradient(j, bin_index, by_d0, by_d1, NUM_BINS, TAILS),
                    )
                if SUMS == SUM_NOTHING:
                    store_planes(
                        grad_derivatives, at_d, grad_derivatives_plane, mask, made,
                        NUM_DERIVATIVES,
                        PADDED if NUM_DERIVATIVES <= PADDED else 2 * PADDED,
                        GRAD_ROWS_D, BLOCK,
                    )  # fmt: skip
                else:
                    sum_d = add_planes(sum_d, made, mask, NUM_DERIVATIVES)
        else:
            largest_x, largest_y = largest
            if grad_widths is not None:
                rq_store_size_gradients(
                    grad_widths, at_w, grad_widths_plane, widths,
                    offset(index, widths0, widths1, widths2, widths_inner, OUTER_DIMS),
                    widths_plane, mask, x_factors, largest_x, bin_index, outside, logit_scale,
                    inverse_bound, NUM_BINS, PARAMETRIZATION, DTYPE,
                )  # fmt: skip
            if grad_heights is not None:
                rq_store_size_gradients(
                    grad_heights, at_h, grad_heights_plane, heights,
                    offset(index, heights0, heights1, heights2, heights_inner, OUTER_DIMS),
                    heights_plane, mask, y_factors, largest_y, bin_index, outside, logit_scale,
                    inverse_bound, NUM_BINS, PARAMETRIZATION, DTYPE,
                )  # fmt: skip
            if grad_derivatives is not None:
                for j in range(NUM_DERIVATIVES):
                    out = rq_derivative_gradient(j, bin_index, by_d0, by_d1, NUM_BINS, TAILS)
                    tl.store(
                        grad_derivatives + (at_d + j * grad_derivatives_plane),
                        out.to(grad_derivatives.dtype.element_ty),
                        mask=mask,
                    )
    if SUMS != SUM_NOTHING:
        index, mask = locate_sums(
            group, chunk, inner_block, groups, rows, inner, size1, size2,
            BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS,
        )  # fmt: skip
        if grad_widths is not None:
            at = offset(
                index, grad_widths0, grad_widths1, grad_widths2, grad_widths_inner, OUTER_DIMS
            )
            at += part_offset(chunk, grad_widths_part, SUMS)
            store_sums(
                grad_widths, at, grad_widths_plane, mask, sum_w, NUM_BINS, BLOCK, BLOCK_INNER, SUMS
            )
        if grad_heights is not None:
            at = offset(
                index, grad_heights0, grad_heights1, grad_heights2, grad_heights_inner, OUTER_DIMS
            )
            at += part_offset(chunk, grad_heights_part, SUMS)
            store_sums(
                grad_heights, at, grad_heights_plane, mask, sum_h, NUM_BINS, BLOCK, BLOCK_INNER,
                SUMS,
            )  # fmt: skip
        if grad_derivatives is not None:
            at = offset(
                index, grad_derivatives0, grad_derivatives1, grad_derivatives2,
                grad_derivatives_inner, OUTER_DIMS,
            )  # fmt: skip
            at += part_offset(chunk, grad_derivatives_part, SUMS)
            store_sums(
                grad_derivatives, at, grad_derivatives_plane, mask, sum_d, NUM_DERIVATIVES,
                BLOCK, BLOCK_INNER, SUMS,
            )  # fmt: skip


@triton.jit
def rq_load_box(
    box, at, plane, mask, left, right, bottom, top, BLOCK: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """((left, right), (bottom, top)): numbers, or a tensor's, element by element."""
    if box is None:
        x_box = (tl.full([], left, DTYPE), tl.full([], right, DTYPE))
        y_box = (tl.full([], bottom, DTYPE), tl.full([], top, DTYPE))
    else:
        left, right, bottom, top = load_planes(box, at, plane, mask, 4, 4, 0, BLOCK, DTYPE)
        x_box = (left, right)
        y_box = (bottom, top)
    return x_box, y_box


@triton.jit
def rq_load_and_search(
    key, widths, heights, derivatives, at_w, at_h, at_d,
    widths_plane, heights_plane, derivatives_plane, mask, x_box, y_box,
    min_bin_width, min_bin_height, min_derivative, logit_scale, inverse_bound,
    NUM_BINS: tl.constexpr, NUM_DERIVATIVES: tl.constexpr, PADDED: tl.constexpr,
    INVERSE: tl.constexpr, TAILS: tl.constexpr, PARAMETRIZATION: tl.constexpr,
    ROWS: tl.constexpr, ROWS_D: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """(width logits, height logits, sizes, bin, place, slopes, sums of sizes), in registers."""
    w = load_planes(widths, at_w, widths_plane, mask, NUM_BINS, PADDED, ROWS, BLOCK, DTYPE)
    h = load_planes(heights, at_h, heights_plane, mask, NUM_BINS, PADDED, ROWS, BLOCK, DTYPE)
    if NUM_DERIVATIVES > 0:
        d = load_planes(
            derivatives, at_d, derivatives_plane, mask, NUM_DERIVATIVES,
            PADDED if NUM_DERIVATIVES <= PADDED else 2 * PADDED, ROWS_D, BLOCK, DTYPE,
        )  # fmt: skip
    else:
        d = ()
    x_sizes, x_behind = rq_sizes(w, logit_scale, inverse_bound, NUM_BINS, PARAMETRIZATION)
    y_sizes, y_behind = rq_sizes(h, logit_scale, inverse_bound, NUM_BINS, PARAMETRIZATION)
    spline_bin, place, slopes = rq_search(
        key, x_sizes, x_behind, y_sizes, y_behind, d, x_box, y_box,
        min_bin_width, min_bin_height, min_derivative, inverse_bound,
        NUM_BINS, INVERSE, TAILS, PARAMETRIZATION,
    )  # fmt: skip
    return w, h, (x_sizes, y_sizes), spline_bin, place, slopes, (x_behind[0], y_behind[0])


@triton.jit
def rq_size_gradients(
    factors, sizes, logits, index, outside, logit_scale, inverse_bound,
    NUM_BINS: tl.constexpr, PARAMETRIZATION: tl.constexpr,
):  # fmt: skip
    made = ()
    for k in tl.static_range(NUM_BINS):
        made = made + (
            rq_size_gradient(
                k, factors, sizes[k], logits[k], index, outside, logit_scale, inverse_bound,
                PARAMETRIZATION,
            ),
        )  # fmt: skip
    return made


# ---- more bins than registers hold: logits are read again for each pass --------------------------


@triton.jit
def load_plane(pointer, at, stride, k, mask, DTYPE: tl.constexpr):
    return tl.load(pointer + (at + k * stride), mask=mask, other=0.0).to(DTYPE)


@triton.jit
def rq_memory_total(
    pointer, at, stride, mask, logit_scale, inverse_bound,
    NUM_BINS: tl.constexpr, PARAMETRIZATION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """(largest logit, sum of the unnormalised sizes)."""
    largest = load_plane(pointer, at, stride, 0, mask, DTYPE)
    if PARAMETRIZATION == PARAMETRIZATION_SOFTMAX:
        for k in range(1, NUM_BINS):
            largest = at_least(largest, load_plane(pointer, at, stride, k, mask, DTYPE))
    total = tl.zeros_like(largest)
    for k in range(NUM_BINS):
        logit = load_plane(pointer, at, stride, k, mask, DTYPE)
        total += rq_size(logit, largest, logit_scale, inverse_bound, PARAMETRIZATION)
    return largest, total


@triton.jit
def rq_search_memory(
    key, widths, heights, derivatives, at_w, at_h, at_d,
    widths_plane, heights_plane, derivatives_plane, mask, x_box, y_box,
    min_bin_width, min_bin_height, min_derivative, logit_scale, inverse_bound,
    NUM_BINS: tl.constexpr, INVERSE: tl.constexpr, TAILS: tl.constexpr,
    PARAMETRIZATION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """(bin, place, slopes, sums of sizes, largest logits); every knot counts from the left."""
    largest_x, total_x = rq_memory_total(
        widths, at_w, widths_plane, mask, logit_scale, inverse_bound,
        NUM_BINS, PARAMETRIZATION, DTYPE,
    )  # fmt: skip
    largest_y, total_y = rq_memory_total(
        heights, at_h, heights_plane, mask, logit_scale, inverse_bound,
        NUM_BINS, PARAMETRIZATION, DTYPE,
    )  # fmt: skip
    x_start, x_end = x_box
    y_start, y_end = y_box
    x_axis = rq_axis(x_start, x_end, total_x, min_bin_width, NUM_BINS, PARAMETRIZATION)
    y_axis = rq_axis(y_start, y_end, total_y, min_bin_height, NUM_BINS, PARAMETRIZATION)
    x_step, x_slope = x_axis
    y_step, y_slope = y_axis
    if TAILS == TAILS_LINEAR:
        first_logit = tl.zeros_like(total_x)
        last_logit = first_logit
    elif TAILS == TAILS_CIRCULAR:
        first_logit = load_plane(derivatives, at_d, derivatives_plane, 0, mask, DTYPE)
        last_logit = first_logit
    else:
        first_logit = load_plane(derivatives, at_d, derivatives_plane, 0, mask, DTYPE)
        last_logit = load_plane(derivatives, at_d, derivatives_plane, NUM_BINS, mask, DTYPE)
    size_x = rq_size(
        load_plane(widths, at_w, widths_plane, 0, mask, DTYPE),
        largest_x, logit_scale, inverse_bound, PARAMETRIZATION,
    )  # fmt: skip
    size_y = rq_size(
        load_plane(heights, at_h, heights_plane, 0, mask, DTYPE),
        largest_y, logit_scale, inverse_bound, PARAMETRIZATION,
    )  # fmt: skip
    state = rq_first_bin(size_x, size_y, first_logit, last_logit, x_box, y_box)
    before_x = size_x
    before_y = size_y
    for k in range(1, NUM_BINS):
        size_x = rq_size(
            load_plane(widths, at_w, widths_plane, k, mask, DTYPE),
            largest_x, logit_scale, inverse_bound, PARAMETRIZATION,
        )  # fmt: skip
        size_y = rq_size(
            load_plane(heights, at_h, heights_plane, k, mask, DTYPE),
            largest_y, logit_scale, inverse_bound, PARAMETRIZATION,
        )  # fmt: skip
        j = k - 1 if TAILS == TAILS_LINEAR else k
        logit = load_plane(derivatives, at_d, derivatives_plane, j, mask, DTYPE)
        knot_x = tl.fma(x_slope, before_x, x_start + k * x_step)
        knot_y = tl.fma(y_slope, before_y, y_start + k * y_step)
        state = rq_pass_knot(
            k, state, knot_x, knot_y, logit, size_x, size_y, before_x, before_y, key, INVERSE
        )
        before_x += size_x
        before_y += size_y
    spline_bin, place = rq_found_bin(
        state, x_box, y_box, last_logit, x_axis, y_axis, min_derivative, inverse_bound,
        TAILS, PARAMETRIZATION,
    )  # fmt: skip
    return spline_bin, place, (x_slope, y_slope), (total_x, total_y), (largest_x, largest_y)


@triton.jit
def rq_store_size_gradients(
    out, at_out, out_plane, logits, at, plane, mask, factors, largest, index, outside,
    logit_scale, inverse_bound,
    NUM_BINS: tl.constexpr, PARAMETRIZATION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    for k in range(NUM_BINS):
        logit = load_plane(logits, at, plane, k, mask, DTYPE)
        size = rq_size(logit, largest, logit_scale, inverse_bound, PARAMETRIZATION)
        made = rq_size_gradient(
            k, factors, size, logit, index, outside, logit_scale, inverse_bound, PARAMETRIZATION
        )
        tl.store(out + (at_out + k * out_plane), made.to(out.dtype.element_ty), mask=mask)


# ---- launchers -----------------------------------------------------------------------------------


def rq(
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    box: Tensor | None,
    num_bins: int,
    inverse: bool,
    tails: int,
    parametrization: int,
    left: float,
    right: float,
    bottom: float,
    top: float,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
    logit_scale: float,
    batch_dims: int,
) -> tuple[Tensor, Tensor]:
    """:func:`robustflow.reference.rq` by a Triton kernel."""
    numbers = (left, right, bottom, top, min_bin_width, min_bin_height, min_derivative)
    config = (*numbers, logit_scale, -1.0 / math.log(min_derivative))

    def run(call: Call, y: Tensor, logabsdet: Sink) -> None:
        w, h, d = _parts(call)
        arguments = (
            *(call.x, w, h, d, call.box, y, logabsdet.data),
            *config,
            *call.plan.geometry(),
            *call.strides(call.x),
            *_strides(call, w, h, d),
            *call.planes(call.box),
            *call.strides(y),
            *call.sums(logabsdet),
        )
        constants = {
            **_constants(num_bins, inverse, tails, parametrization),
            "ROWS": call.rows(w, h),
            "ROWS_D": call.rows(d if h is not None else w),
            **call.constants(),
        }
        launch(rq_kernel, call.plan.programs, arguments, constants, _NUM_WARPS)

    params = _tensors(widths, heights, derivatives, num_bins, tails)
    return transform(x, params, box, batch_dims, _BLOCK, run)


def rq_backward(
    grad_y: Tensor | None,
    grad_logabsdet: Tensor | None,
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    box: Tensor | None,
    num_bins: int,
    inverse: bool,
    tails: int,
    parametrization: int,
    left: float,
    right: float,
    bottom: float,
    top: float,
    min_bin_width: float,
    min_bin_height: float,
    min_derivative: float,
    logit_scale: float,
    batch_dims: int,
    needed: int,
) -> tuple[Tensor, ...]:
    """Gradients by x, widths, heights, derivatives; bit i of ``needed`` asks for i, else empty."""
    numbers = (left, right, bottom, top, min_bin_width, min_bin_height, min_derivative)
    config = (*numbers, logit_scale, -1.0 / math.log(min_derivative))

    def run(
        call: Call,
        grad_y: Tensor | None,
        grad_logabsdet: Tensor | None,
        grad_x: Tensor | None,
        sinks: tuple[Sink, ...],
    ) -> None:
        w, h, d = _parts(call)
        absent = Sink(None, (0,) * call.x.dim())
        each = (*sinks, absent, absent)[:3]
        arguments = (
            *(call.x, w, h, d, call.box, grad_y, grad_logabsdet, grad_x),
            *(sink.data for sink in each),
            *config,
            *call.plan.geometry(),
            *call.strides(call.x),
            *_strides(call, w, h, d),
            *call.planes(call.box),
            *call.strides(grad_y),
            *call.strides(grad_logabsdet),
            *call.strides(grad_x),
            *(s for sink in (each if h is not None else sinks * 3) for s in call.plane_sums(sink)),
        )
        constants = {
            **_constants(num_bins, inverse, tails, parametrization),
            "ROWS": call.rows(w, h),
            "ROWS_D": call.rows(d if h is not None else w),
            "GRAD_ROWS": call.rows(each[0], each[1]),
            "GRAD_ROWS_D": call.rows(each[2] if h is not None else each[0]),
            **call.constants(),
        }
        launch(rq_gradient_kernel, call.plan.programs, arguments, constants, _NUM_WARPS)

    params = _tensors(widths, heights, derivatives, num_bins, tails)
    wanted = tuple(bool(needed >> i & 1) for i in range(1 + len(params)))
    sums = num_bins <= MAX_BINS_IN_REGISTERS
    out = gradient(grad_y, grad_logabsdet, x, params, box, wanted, _BLOCK, run, sums)
    if derivatives is not None and len(out) == 3 and needed >> 3 & 1:
        return (*out, derivatives.new_empty(derivatives.shape))  # of no elements
    return (*out, *(x.new_empty(0) for _ in range(4 - len(out))))


def num_derivatives(num_bins: int, tails: int) -> int:
    return num_bins + {TAILS_LINEAR.value: -1, TAILS_CIRCULAR.value: 0, TAILS_NONE.value: 1}[tails]


def _tensors(
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    num_bins: int,
    tails: int,
) -> tuple[Tensor, ...]:
    """The parameters: one tensor, or three, or two where there are no derivatives."""
    if heights is None or derivatives is None:
        return (widths,)
    some = num_derivatives(num_bins, tails) > 0
    return (widths, heights, derivatives) if some else (widths, heights)


def _parts(call: Call) -> tuple[Tensor, Tensor | None, Tensor | None]:
    w, h, d = (*call.params, None, None)[:3]
    assert w is not None
    return w, h, d


def _strides(call: Call, w: Tensor, h: Tensor | None, d: Tensor | None) -> tuple[int, ...]:
    """Of widths, heights and derivatives; those that are not there lie in ``w``."""
    return tuple(s for part in (w, h, d) for s in call.planes(w if part is None else part))


def _constants(num_bins: int, inverse: bool, tails: int, parametrization: int) -> dict[str, Any]:
    return {
        "NUM_BINS": num_bins,
        "NUM_DERIVATIVES": num_derivatives(num_bins, tails),
        "PADDED": triton.next_power_of_2(num_bins),
        "IN_REGISTERS": num_bins <= MAX_BINS_IN_REGISTERS,
        "INVERSE": inverse,
        "TAILS": tails,
        "PARAMETRIZATION": parametrization,
    }
