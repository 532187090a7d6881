# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
# ruff: noqa: RUF005  (Triton knows no (*a, b))
"""The rational-quadratic spline with K bins, on a block of elements: csrc/math/rq_spline.h.

Durkan et al. 2019 (arXiv:1906.04032). Up to ``launchers.MAX_BINS_IN_REGISTERS`` bins, an element's
logits are tuples of blocks, held in registers; beyond, they are read from memory again for each
pass. Both ways go through the same steps.

A *derivative* is the tuple (d, d log d / d logit). A *position* is what gradients need beside an
element's bin: its index, the unnormalised sizes of the bins before it, of its own and of those
after it, on x and on y, and d log d / d logit at its two knots.
"""

from __future__ import annotations

import triton
import triton.language as tl

from robustflow.kernels.elementary import (
    exponential,
    exponential_of_negative,
    maximum,
    minimum,
    soft_clip,
    softplus,
)


@triton.jit
def rq_size(logit, largest, logit_scale, inverse_bound, PARAMETRIZATION: tl.constexpr):
    """An unnormalised bin size."""
    if PARAMETRIZATION == "knots":
        return logit
    elif PARAMETRIZATION == "softclip":
        clipped, _ = soft_clip(logit_scale * logit, 2.0 * inverse_bound)
        return exponential(clipped)
    else:
        return exponential_of_negative(logit_scale * (logit - largest))


@triton.jit
def rq_axis(
    start, end, total, min_bin, NUM_BINS: tl.constexpr, PARAMETRIZATION: tl.constexpr
):  # fmt: skip
    """(step, slope): a bin's size is step + slope * its unnormalised size."""
    zero = tl.zeros_like(total)
    if PARAMETRIZATION == "knots":
        return zero, zero + 1.0
    elif PARAMETRIZATION == "softclip":
        return zero, (end - start) / total
    else:
        length = end - start
        return zero + length * min_bin, length * (1.0 - NUM_BINS * min_bin) / total


@triton.jit
def rq_derivative(logit, min_derivative, inverse_bound, PARAMETRIZATION: tl.constexpr):
    if PARAMETRIZATION == "softmax":
        value, slope = softplus(logit)
        value = min_derivative + value
        return value, slope / value
    elif PARAMETRIZATION == "softclip":
        clipped, slope = soft_clip(logit, inverse_bound)
        return exponential(clipped), slope
    else:
        return logit, 1.0 / logit


@triton.jit
def rq_sizes(
    logits,
    logit_scale,
    inverse_bound,
    NUM_BINS: tl.constexpr,
    PARAMETRIZATION: tl.constexpr,
):
    """(sizes, after): after[k] is the sum of the sizes from k on; all unnormalised."""
    largest = logits[0]
    if PARAMETRIZATION == "softmax":
        for k in tl.static_range(1, NUM_BINS):
            largest = maximum(largest, logits[k])
    total = tl.zeros_like(largest)
    sizes = ()
    after = ()
    for i in tl.static_range(NUM_BINS):
        size = rq_size(
            logits[NUM_BINS - 1 - i], largest, logit_scale, inverse_bound, PARAMETRIZATION
        )
        total = size if i == 0 else total + size
        sizes = (size,) + sizes
        after = (total,) + after
    return sizes, after


@triton.jit
def rq_knot(
    k,
    before,
    after,
    start,
    end,
    step,
    slope,
    NUM_BINS: tl.constexpr,
    PARAMETRIZATION: tl.constexpr,
):
    """Knot k, from the left end of the box up to the middle knot, else from the right.

    If the bins are of similar size that is the nearer end, whose rounding error is smaller.
    Ready-made sizes need not sum exactly to the box: their knots are measured from the left.
    """
    if PARAMETRIZATION == "knots" or k <= NUM_BINS // 2:
        return tl.fma(slope, before, start + k * step)
    else:
        return tl.fma(-slope, after, end - (NUM_BINS - k) * step)


@triton.jit
def rq_first_bin(size_x, size_y, logit0, logit1, x_box, y_box):
    """The search's state before the first inner knot.

    (bin index, x0, x1, y0, y1, own sizes, sizes before, sizes after, the two derivative logits,
    whether the last knot was reached)
    """
    zero = tl.zeros_like(size_x)
    x_start, x_end = x_box
    y_start, y_end = y_box
    return (
        zero,
        zero + x_start,
        zero + x_end,
        zero + y_start,
        zero + y_end,
        size_x,
        size_y,
        zero,
        zero,
        zero,
        zero,
        zero + logit0,
        zero + logit1,
        zero == 0.0,
    )


@triton.jit
def rq_pass_knot(
    k, state, knot_x, knot_y, logit, size_x, size_y, before_x, before_y, key,
    INVERSE: tl.constexpr,
):  # fmt: skip
    """The search's state after inner knot k, with the sizes of the bin after it.

    If the key passed the previous knot, this knot is its bin's right end (so far). If it passed
    this knot, this is its bin's left end. NaN passes no knot.
    """
    index, x0, x1, y0, y1, own_x, own_y, pre_x, pre_y, post_x, post_y, logit0, logit1, reached = (
        state
    )
    x1 = tl.where(reached, knot_x, x1)
    y1 = tl.where(reached, knot_y, y1)
    logit1 = tl.where(reached, logit, logit1)
    reached = key >= knot_y if INVERSE else key >= knot_x
    return (
        tl.where(reached, k * 1.0, index),
        tl.where(reached, knot_x, x0),
        x1,
        tl.where(reached, knot_y, y0),
        y1,
        tl.where(reached, size_x, own_x),
        tl.where(reached, size_y, own_y),
        tl.where(reached, before_x, pre_x),
        tl.where(reached, before_y, pre_y),
        post_x + tl.where(reached, 0.0, size_x),
        post_y + tl.where(reached, 0.0, size_y),
        tl.where(reached, logit, logit0),
        logit1,
        reached,
    )


@triton.jit
def rq_found_bin(
    state,
    x_box,
    y_box,
    last_logit,
    x_axis,
    y_axis,
    min_derivative,
    inverse_bound,
    TAILS: tl.constexpr,
    PARAMETRIZATION: tl.constexpr,
):
    """(bin, position) from the search's state after the last inner knot."""
    index, x0, x1, y0, y1, own_x, own_y, pre_x, pre_y, post_x, post_y, logit0, logit1, reached = (
        state
    )
    _, x_end = x_box
    _, y_end = y_box
    x1 = tl.where(reached, x_end, x1)
    y1 = tl.where(reached, y_end, y1)
    logit1 = tl.where(reached, last_logit, logit1)
    d0, d0_slope = rq_derivative(logit0, min_derivative, inverse_bound, PARAMETRIZATION)
    d1, d1_slope = rq_derivative(logit1, min_derivative, inverse_bound, PARAMETRIZATION)
    if TAILS == "linear":
        d0 = tl.where(index == 0.0, 1.0, d0)
        d1 = tl.where(reached, 1.0, d1)
    x_step, x_slope = x_axis
    y_step, y_slope = y_axis
    width, height = tl.fma(x_slope, own_x, x_step), tl.fma(y_slope, own_y, y_step)
    if PARAMETRIZATION == "knots":  # the last knot is the end of the box
        width = tl.where(reached, x_end - x0, width)
        height = tl.where(reached, y_end - y0, height)
    position = (index, pre_x, own_x, post_x, pre_y, own_y, post_y, d0_slope, d1_slope)
    return (x0, x1, y0, y1, width, height, d0, d1), position


@triton.jit
def rq_search(
    key,
    x_sizes,
    x_after,
    y_sizes,
    y_after,
    derivatives,
    x_box,
    y_box,
    min_bin_width,
    min_bin_height,
    min_derivative,
    inverse_bound,
    NUM_BINS: tl.constexpr,
    INVERSE: tl.constexpr,
    TAILS: tl.constexpr,
    PARAMETRIZATION: tl.constexpr,
):
    """(bin, position, axes) of each element, its logits in registers."""
    x_start, x_end = x_box
    y_start, y_end = y_box
    x_axis = rq_axis(x_start, x_end, x_after[0], min_bin_width, NUM_BINS, PARAMETRIZATION)
    y_axis = rq_axis(y_start, y_end, y_after[0], min_bin_height, NUM_BINS, PARAMETRIZATION)
    x_step, x_slope = x_axis
    y_step, y_slope = y_axis
    if TAILS == "linear":
        first_logit = 1.0
        last_logit = 1.0
    elif TAILS == "circular":
        first_logit = derivatives[0]
        last_logit = derivatives[0]
    else:
        first_logit = derivatives[0]
        last_logit = derivatives[NUM_BINS]
    state = rq_first_bin(x_sizes[0], y_sizes[0], first_logit, last_logit, x_box, y_box)
    before_x = x_sizes[0]
    before_y = y_sizes[0]
    for k in tl.static_range(1, NUM_BINS):
        knot_x = rq_knot(
            k, before_x, x_after[k], x_start, x_end, x_step, x_slope, NUM_BINS, PARAMETRIZATION
        )
        knot_y = rq_knot(
            k, before_y, y_after[k], y_start, y_end, y_step, y_slope, NUM_BINS, PARAMETRIZATION
        )
        logit = derivatives[k - 1 if TAILS == "linear" else k]
        state = rq_pass_knot(
            k, state, knot_x, knot_y, logit, x_sizes[k], y_sizes[k], before_x, before_y, key,
            INVERSE,
        )  # fmt: skip
        before_x = before_x + x_sizes[k]
        before_y = before_y + y_sizes[k]
    spline_bin, position = rq_found_bin(
        state, x_box, y_box, last_logit, x_axis, y_axis, min_derivative, inverse_bound,
        TAILS, PARAMETRIZATION,
    )  # fmt: skip
    return spline_bin, position, (x_slope, y_slope)


@triton.jit
def rq_outside(key, lower, upper, TAILS: tl.constexpr, X_DTYPE: tl.constexpr):
    """Whether an element is outside; written so that NaN counts as inside.

    Except with linear tails, the edges belong to the spline, and so do their roundings to x's
    dtype, which may lie outside.
    """
    if TAILS == "linear":
        return (key <= lower) | (key >= upper)
    else:
        lower = minimum(lower, rq_as_stored(lower, X_DTYPE))
        upper = maximum(upper, rq_as_stored(upper, X_DTYPE))
        return (key < lower) | (key > upper)


@triton.jit
def rq_as_stored(edge, X_DTYPE: tl.constexpr):
    """An edge of the box as x's dtype holds it, unless that is infinite."""
    stored = edge.to(X_DTYPE).to(edge.dtype)
    return tl.where(tl.abs(stored) == float("inf"), edge, stored)


@triton.jit
def rq_size_factors(
    slope,
    total,
    logit_scale,
    index,
    before,
    own,
    after,
    grad_left,
    grad_right,
    grad_both,
    NUM_BINS: tl.constexpr,
    PARAMETRIZATION: tl.constexpr,
):
    """Factors of the gradients by size logits: before an element's bin, its own, after it.

    The gradient is the factor times the bin's unnormalised size: slope * size_j * (C_j - mean). C_j
    is the gradient by the knots that move with bin j: both of the element's if bin j is before its
    own, the right one for its own, none for a later bin. The mean is weighted by size. Differences
    are written out, because they cancel. For ready-made sizes the gradient is C_j; there the last
    knot is the end of the box, whatever the sizes.
    """
    if PARAMETRIZATION == "knots":
        last = index == NUM_BINS - 1.0
        return (
            tl.where(last, grad_left, grad_both),
            tl.where(last, 0.0, grad_right),
            tl.zeros_like(total),
        )
    else:
        factor = slope * logit_scale / total
        return (
            factor * tl.fma(grad_both, after, grad_left * own),
            factor * tl.fma(grad_right, after, -(grad_left * before)),
            -(factor * tl.fma(grad_both, before, grad_right * own)),
        )


@triton.jit
def rq_size_gradient(
    k, factors, size, logit, index, outside, logit_scale, inverse_bound,
    PARAMETRIZATION: tl.constexpr,
):  # fmt: skip
    before, own, after = factors
    out = tl.where(index > k, before, tl.where(index == k, own, after))
    if PARAMETRIZATION != "knots":
        out = size * out
    if PARAMETRIZATION == "softclip":
        _, clip_slope = soft_clip(logit_scale * logit, 2.0 * inverse_bound)
        out = out * clip_slope
    return tl.where(outside, 0.0, out)


@triton.jit
def rq_derivative_gradient(
    j, index, grad_d0, grad_d1, NUM_BINS: tl.constexpr, TAILS: tl.constexpr
):  # fmt: skip
    """The gradient by derivative logit j, from those by the derivatives at an element's knots."""
    knot = j + 1 if TAILS == "linear" else j
    out = tl.where(index == knot, grad_d0, 0.0) + tl.where(index == knot - 1, grad_d1, 0.0)
    if TAILS == "circular":
        out += tl.where((j == 0) & (index == NUM_BINS - 1), grad_d1, 0.0)
    return out
