# mypy: allow-untyped-defs, allow-incomplete-defs
"""The modified rational-quadratic spline of Hong, Park and Chun: csrc/math/modified_rq.h.

arXiv:2212.04319: two bins in a box, slope 1 at its edges, identity outside, and a shift. Four
parameters an element: width, height, derivative and shift logits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from robustflow.kernels.elementary import (
    exponential,
    saturated,
    saturating_exponential,
    sigmoid,
    soft_clip,
)
from robustflow.kernels.rq_bin import rq_forward, rq_gradient, rq_inverse


@triton.jit
def modified_rq_settings(settings):
    return settings[0], settings[1], settings[2], settings[3], settings[4]


@triton.jit
def modified_rq_bin(
    key,
    w,
    h,
    d,
    settings,
    INVERSE: tl.constexpr,
    DERIVATIVE: tl.constexpr,
):
    """(bin, whether it is the second one, whether the element is outside, values for gradients).

    key: x, or y - shift for the inverse.
    """
    left, right, min_bin, min_derivative, inverse_bound = modified_rq_settings(settings)
    length = right - left
    free = 1.0 - 2.0 * min_bin
    w_value, w_complement = sigmoid(w)
    h_value, h_complement = sigmoid(h)
    if DERIVATIVE == "softclip":
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
    outside = (key <= left) | (key >= right)  # written so that NaN counts as inside and stays NaN
    slopes = (w_value * w_complement, h_value * h_complement, factor, derivative)
    return spline_bin, upper, outside, slopes


@triton.jit
def modified_rq_transform(
    x, params, settings, OPTIONS: tl.constexpr, INVERSE: tl.constexpr
):  # fmt: skip
    w, h, d, shift = params[0]
    key = x - shift if INVERSE else x
    spline_bin, _, outside, _ = modified_rq_bin(key, w, h, d, settings, INVERSE, OPTIONS[0])
    if INVERSE:
        value, slope = rq_inverse(spline_bin, key)
        value = tl.where(outside, key, value)
    else:
        value, slope = rq_forward(spline_bin, key)
        value = tl.where(outside, key, value) + shift
    slope = tl.where(outside, 1.0, slope)
    return value, slope, tl.log(slope)


@triton.jit
def modified_rq_gradient(
    x, params, grad_output, grad_logabsdet, settings, OPTIONS: tl.constexpr, INVERSE: tl.constexpr
):  # fmt: skip
    w, h, d, shift = params[0]
    left, right, min_bin, min_derivative, inverse_bound = modified_rq_settings(settings)
    size = (right - left) * (1.0 - 2.0 * min_bin)
    key = x - shift if INVERSE else x
    spline_bin, upper, outside, factors = modified_rq_bin(
        key, w, h, d, settings, INVERSE, OPTIONS[0]
    )
    grad_x, grad_x0, grad_x1, grad_y0, grad_y1, grad_log_d0, grad_log_d1, _, _ = rq_gradient(
        spline_bin, key, grad_output, grad_logabsdet, INVERSE
    )
    w_slope, h_slope, factor, derivative = factors
    # The inner knot is the right one of the first bin and the left one of the second.
    grad_w = tl.where(upper, grad_x0, grad_x1) * (size * tl.where(saturated(w), 0.0, w_slope))
    grad_h = tl.where(upper, grad_y0, grad_y1) * (size * tl.where(saturated(h), 0.0, h_slope))
    if OPTIONS[0] == "softclip":
        _, log_slope = soft_clip(d, inverse_bound)
    else:
        log_slope = (1.0 - min_derivative) * factor / derivative
        log_slope = tl.where(saturated(d), 0.0, log_slope)
    grad_d = tl.where(upper, grad_log_d0, grad_log_d1) * log_slope
    grad_x = tl.where(outside, grad_output, grad_x)
    grad_shift = -grad_x if INVERSE else grad_output
    param_grads = (
        tl.where(outside, 0.0, grad_w),
        tl.where(outside, 0.0, grad_h),
        tl.where(outside, 0.0, grad_d),
        grad_shift,
    )
    return grad_x, (param_grads,)
