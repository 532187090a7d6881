# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
# ruff: noqa: RUF005  (Triton knows no (*a, b))
"""The rational-quadratic spline with K bins: formulas around rq_spline.py."""

from __future__ import annotations

import triton
import triton.language as tl

from robustflow.kernels.elementary import maximum, minimum
from robustflow.kernels.indexing import at_index, load_planes
from robustflow.kernels.rq_bin import rq_forward, rq_gradient, rq_inverse
from robustflow.kernels.rq_spline import (
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


@triton.jit
def rq_settings(settings):
    """The settings after the box."""
    return settings[4], settings[5], settings[6], settings[7], settings[8]


@triton.jit
def rq_transform(
    x, params, box, mask, settings,
    OPTIONS: tl.constexpr, IN_REGISTERS: tl.constexpr, INVERSE: tl.constexpr,
    X_DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    NUM_BINS: tl.constexpr = OPTIONS[0]
    TAILS: tl.constexpr = OPTIONS[1]
    PARAMETRIZATION: tl.constexpr = OPTIONS[2]
    x_box, y_box = rq_load_box(box, mask, settings, BLOCK, x.dtype)
    if IN_REGISTERS:
        _, spline_bin, _, _, _ = rq_search_registers(
            x, params, x_box, y_box, settings, NUM_BINS, INVERSE, TAILS, PARAMETRIZATION
        )  # fmt: skip
    else:
        spline_bin, _, _, _, _ = rq_search_memory(
            x, params, mask, x_box, y_box, settings, NUM_BINS, INVERSE, TAILS, PARAMETRIZATION
        )  # fmt: skip
    if INVERSE:
        lower, upper = y_box
        min_value, max_value = x_box
        value, slope = rq_inverse(spline_bin, x)
    else:
        lower, upper = x_box
        min_value, max_value = y_box
        value, slope = rq_forward(spline_bin, x)
    outside = rq_outside(x, lower, upper, TAILS, X_DTYPE)
    if TAILS != "linear":  # an inner knot may be rounded past the end of the box
        value = maximum(min_value, minimum(max_value, value))
    if TAILS is None:
        value = tl.where(outside, float("nan"), value)
        slope = tl.where(outside, float("nan"), slope)
    else:
        value = tl.where(outside, x, value)
        slope = tl.where(outside, 1.0, slope)
    return value, slope, tl.log(slope)


@triton.jit
def rq_gradient_by_bins(
    x, params, box, mask, grad_output, grad_logabsdet, settings, index, grads,
    OPTIONS: tl.constexpr, WRITES: tl.constexpr, IN_REGISTERS: tl.constexpr,
    INVERSE: tl.constexpr, X_DTYPE: tl.constexpr, BLOCK: tl.constexpr, OUTER_DIMS: tl.constexpr,
):  # fmt: skip
    NUM_BINS: tl.constexpr = OPTIONS[0]
    TAILS: tl.constexpr = OPTIONS[1]
    PARAMETRIZATION: tl.constexpr = OPTIONS[2]
    NUM_DERIVATIVES: tl.constexpr = OPTIONS[5]
    _, _, _, logit_scale, inverse_bound = rq_settings(settings)
    x_box, y_box = rq_load_box(box, mask, settings, BLOCK, x.dtype)
    if IN_REGISTERS:
        sizes, spline_bin, position, slopes, totals = rq_search_registers(
            x, params, x_box, y_box, settings, NUM_BINS, INVERSE, TAILS, PARAMETRIZATION
        )  # fmt: skip
    else:
        spline_bin, position, slopes, totals, largest = rq_search_memory(
            x, params, mask, x_box, y_box, settings, NUM_BINS, INVERSE, TAILS, PARAMETRIZATION
        )  # fmt: skip
    if INVERSE:
        lower, upper = y_box
    else:
        lower, upper = x_box
    outside = rq_outside(x, lower, upper, TAILS, X_DTYPE)
    grad_x, grad_x0, grad_x1, grad_y0, grad_y1, grad_log_d0, grad_log_d1, grad_x_knots, \
        grad_y_knots = rq_gradient(spline_bin, x, grad_output, grad_logabsdet, INVERSE)  # fmt: skip
    bin_index, pre_x, own_x, post_x, pre_y, own_y, post_y, d0_slope, d1_slope = position
    x_slope, y_slope = slopes
    x_total, y_total = totals
    x_factors = rq_size_factors(
        x_slope, x_total, logit_scale, bin_index, pre_x, own_x, post_x,
        grad_x0, grad_x1, grad_x_knots, NUM_BINS, PARAMETRIZATION,
    )  # fmt: skip
    y_factors = rq_size_factors(
        y_slope, y_total, logit_scale, bin_index, pre_y, own_y, post_y,
        grad_y0, grad_y1, grad_y_knots, NUM_BINS, PARAMETRIZATION,
    )  # fmt: skip
    grad_d0 = tl.where(outside, 0.0, grad_log_d0 * d0_slope)
    grad_d1 = tl.where(outside, 0.0, grad_log_d1 * d1_slope)
    grad_x = tl.where(outside, tl.zeros_like(x) if TAILS is None else grad_output, grad_x)
    if IN_REGISTERS:
        w, h, _ = params
        x_sizes, y_sizes = sizes
        grad_w = rq_size_gradients(
            x_factors, x_sizes, w, bin_index, outside, logit_scale, inverse_bound,
            NUM_BINS, PARAMETRIZATION,
        )  # fmt: skip
        grad_h = rq_size_gradients(
            y_factors, y_sizes, h, bin_index, outside, logit_scale, inverse_bound,
            NUM_BINS, PARAMETRIZATION,
        )  # fmt: skip
        grad_d = ()
        for j in tl.static_range(NUM_DERIVATIVES):
            grad_d = grad_d + (
                rq_derivative_gradient(j, bin_index, grad_d0, grad_d1, NUM_BINS, TAILS),
            )
        return grad_x, (grad_w, grad_h, grad_d)
    else:
        largest_x, largest_y = largest
        targets = at_index(index, grads, WRITES, OUTER_DIMS)
        rq_store_size_gradients(
            targets[0], params[0], mask, x_factors, largest_x, bin_index, outside,
            logit_scale, inverse_bound, NUM_BINS, PARAMETRIZATION, x.dtype,
        )  # fmt: skip
        rq_store_size_gradients(
            targets[1], params[1], mask, y_factors, largest_y, bin_index, outside,
            logit_scale, inverse_bound, NUM_BINS, PARAMETRIZATION, x.dtype,
        )  # fmt: skip
        pointer, at, plane = targets[2]
        if pointer is not None:
            for j in range(NUM_DERIVATIVES):
                gradient = rq_derivative_gradient(j, bin_index, grad_d0, grad_d1, NUM_BINS, TAILS)
                tl.store(
                    pointer + (at + j * plane), gradient.to(pointer.dtype.element_ty), mask=mask
                )  # fmt: skip
        return grad_x, ()


@triton.jit
def rq_load_box(box, mask, settings, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """((left, right), (bottom, top)): settings, or a tensor's numbers, element by element."""
    pointer, at, plane = box
    if pointer is None:
        return (settings[0], settings[1]), (settings[2], settings[3])
    else:
        left, right, bottom, top = load_planes(pointer, at, plane, mask, 4, 4, 0, BLOCK, DTYPE)
        return (left, right), (bottom, top)


@triton.jit
def rq_search_registers(
    key, params, x_box, y_box, settings,
    NUM_BINS: tl.constexpr, INVERSE: tl.constexpr, TAILS: tl.constexpr,
    PARAMETRIZATION: tl.constexpr,
):  # fmt: skip
    """(sizes, bin, position, slopes, sums of sizes), the logits in registers."""
    min_bin_width, min_bin_height, min_derivative, logit_scale, inverse_bound = rq_settings(
        settings
    )
    w, h, d = params
    x_sizes, x_after = rq_sizes(w, logit_scale, inverse_bound, NUM_BINS, PARAMETRIZATION)
    y_sizes, y_after = rq_sizes(h, logit_scale, inverse_bound, NUM_BINS, PARAMETRIZATION)
    spline_bin, position, slopes = rq_search(
        key, x_sizes, x_after, y_sizes, y_after, d, x_box, y_box,
        min_bin_width, min_bin_height, min_derivative, inverse_bound,
        NUM_BINS, INVERSE, TAILS, PARAMETRIZATION,
    )  # fmt: skip
    return (x_sizes, y_sizes), spline_bin, position, slopes, (x_after[0], y_after[0])


@triton.jit
def rq_size_gradients(
    factors, sizes, logits, index, outside, logit_scale, inverse_bound,
    NUM_BINS: tl.constexpr, PARAMETRIZATION: tl.constexpr,
):  # fmt: skip
    gradients = ()
    for k in tl.static_range(NUM_BINS):
        gradients = gradients + (
            rq_size_gradient(
                k, factors, sizes[k], logits[k], index, outside, logit_scale, inverse_bound,
                PARAMETRIZATION,
            ),
        )  # fmt: skip
    return gradients


# ---- more bins than registers hold: logits are read again for each pass --------------------------


@triton.jit
def load_plane(group, k, mask, DTYPE: tl.constexpr):
    pointer, at, stride = group
    return tl.load(pointer + (at + k * stride), mask=mask, other=0.0).to(DTYPE)


@triton.jit
def rq_memory_total(
    logits, mask, logit_scale, inverse_bound,
    NUM_BINS: tl.constexpr, PARAMETRIZATION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """(largest logit, sum of the unnormalised sizes)."""
    largest = load_plane(logits, 0, mask, DTYPE)
    if PARAMETRIZATION == "softmax":
        for k in range(1, NUM_BINS):
            largest = maximum(largest, load_plane(logits, k, mask, DTYPE))
    total = tl.zeros_like(largest)
    for k in range(NUM_BINS):
        logit = load_plane(logits, k, mask, DTYPE)
        total += rq_size(logit, largest, logit_scale, inverse_bound, PARAMETRIZATION)
    return largest, total


@triton.jit
def rq_search_memory(
    key, params, mask, x_box, y_box, settings,
    NUM_BINS: tl.constexpr, INVERSE: tl.constexpr, TAILS: tl.constexpr,
    PARAMETRIZATION: tl.constexpr,
):  # fmt: skip
    """(bin, position, slopes, sums of sizes, largest logits); every knot counts from the left."""
    min_bin_width, min_bin_height, min_derivative, logit_scale, inverse_bound = rq_settings(
        settings
    )
    DTYPE: tl.constexpr = key.dtype
    widths, heights, derivatives = params
    largest_x, total_x = rq_memory_total(
        widths, mask, logit_scale, inverse_bound, NUM_BINS, PARAMETRIZATION, DTYPE
    )
    largest_y, total_y = rq_memory_total(
        heights, mask, logit_scale, inverse_bound, NUM_BINS, PARAMETRIZATION, DTYPE
    )
    x_start, x_end = x_box
    y_start, y_end = y_box
    x_axis = rq_axis(x_start, x_end, total_x, min_bin_width, NUM_BINS, PARAMETRIZATION)
    y_axis = rq_axis(y_start, y_end, total_y, min_bin_height, NUM_BINS, PARAMETRIZATION)
    x_step, x_slope = x_axis
    y_step, y_slope = y_axis
    if TAILS == "linear":
        first_logit = tl.zeros_like(total_x)
        last_logit = first_logit
    elif TAILS == "circular":
        first_logit = load_plane(derivatives, 0, mask, DTYPE)
        last_logit = first_logit
    else:
        first_logit = load_plane(derivatives, 0, mask, DTYPE)
        last_logit = load_plane(derivatives, NUM_BINS, mask, DTYPE)
    size_x = rq_size(
        load_plane(widths, 0, mask, DTYPE),
        largest_x, logit_scale, inverse_bound, PARAMETRIZATION,
    )  # fmt: skip
    size_y = rq_size(
        load_plane(heights, 0, mask, DTYPE),
        largest_y, logit_scale, inverse_bound, PARAMETRIZATION,
    )  # fmt: skip
    state = rq_first_bin(size_x, size_y, first_logit, last_logit, x_box, y_box)
    before_x = size_x
    before_y = size_y
    for k in range(1, NUM_BINS):
        size_x = rq_size(
            load_plane(widths, k, mask, DTYPE),
            largest_x, logit_scale, inverse_bound, PARAMETRIZATION,
        )  # fmt: skip
        size_y = rq_size(
            load_plane(heights, k, mask, DTYPE),
            largest_y, logit_scale, inverse_bound, PARAMETRIZATION,
        )  # fmt: skip
        j = k - 1 if TAILS == "linear" else k
        logit = load_plane(derivatives, j, mask, DTYPE)
        knot_x = tl.fma(x_slope, before_x, x_start + k * x_step)
        knot_y = tl.fma(y_slope, before_y, y_start + k * y_step)
        state = rq_pass_knot(
            k, state, knot_x, knot_y, logit, size_x, size_y, before_x, before_y, key, INVERSE
        )
        before_x += size_x
        before_y += size_y
    spline_bin, position = rq_found_bin(
        state, x_box, y_box, last_logit, x_axis, y_axis, min_derivative, inverse_bound,
        TAILS, PARAMETRIZATION,
    )  # fmt: skip
    return spline_bin, position, (x_slope, y_slope), (total_x, total_y), (largest_x, largest_y)


@triton.jit
def rq_store_size_gradients(
    target, source, mask, factors, largest, index, outside, logit_scale, inverse_bound,
    NUM_BINS: tl.constexpr, PARAMETRIZATION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    pointer, at, plane = target
    if pointer is not None:
        for k in range(NUM_BINS):
            logit = load_plane(source, k, mask, DTYPE)
            size = rq_size(logit, largest, logit_scale, inverse_bound, PARAMETRIZATION)
            gradient = rq_size_gradient(
                k, factors, size, logit, index, outside, logit_scale, inverse_bound, PARAMETRIZATION
            )
            tl.store(
                pointer + (at + k * plane), gradient.to(pointer.dtype.element_ty), mask=mask
            )  # fmt: skip
