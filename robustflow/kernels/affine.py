# mypy: allow-untyped-defs, allow-incomplete-defs
"""The conditional affine transform: y = (x + shift) s, or x s + shift: csrc/math/affine.h.

Two parameters an element: shift and scale logit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from robustflow.kernels.elementary import (
    LOGIT_LIMIT,
    arctangent,
    hyperbolic_tangent,
    maximum,
    minimum,
    saturated,
    saturating_exponential,
    sigmoid,
    soft_clip,
    softplus,
)


@triton.jit
def affine_exponent(a, clamp, SCALE: tl.constexpr):
    """(exponent, slope) of a scale that is an exponential."""
    if SCALE == "atan_exp":
        value, slope = arctangent(a)
        return 0.636 * clamp * value, 0.636 * clamp * slope
    elif SCALE == "tanh_exp":
        value, slope = hyperbolic_tangent(a)
        return clamp * value, clamp * slope
    elif SCALE == "softclip_exp":
        return soft_clip(a, 1.0 / clamp)
    else:
        return a, tl.zeros_like(a) + 1.0


@triton.jit
def affine_scale(a, eps, clamp, SCALE: tl.constexpr):
    """(scale before the reciprocal, derivative of its logarithm by the logit)."""
    if SCALE == "sigmoid":
        logit = a + 2.0
        value, complement = sigmoid(logit)
        scale = value + eps
        return scale, tl.where(saturated(logit), 0.0, value * complement) / scale
    elif SCALE == "softplus":
        value, slope = softplus(maximum(-LOGIT_LIMIT, a))
        scale = value + eps
        return scale, tl.where(a < -LOGIT_LIMIT, 0.0, slope / scale)
    else:
        exponent, slope = affine_exponent(a, clamp, SCALE)
        return saturating_exponential(exponent), tl.where(saturated(exponent), 0.0, slope)


@triton.jit
def affine_log_slope(a, slope, clamp, SCALE: tl.constexpr, RECIPROCAL: tl.constexpr):
    """logabsdet of the forward transform, given its slope."""
    if SCALE == "sigmoid" or SCALE == "softplus":
        return tl.log(slope)
    else:
        exponent, _ = affine_exponent(a, clamp, SCALE)
        e = minimum(LOGIT_LIMIT, maximum(-LOGIT_LIMIT, exponent))
        return tl.where(slope == slope, -e if RECIPROCAL else e, slope)


@triton.jit
def affine_params(params):
    """(shift, scale logit) of a tile's elements, from one tensor or from two."""
    if len(params) == 1:
        return params[0]
    else:
        return params[0][0], params[1][0]


@triton.jit
def affine_transform(
    x, params, settings, OPTIONS: tl.constexpr, INVERSE: tl.constexpr
):  # fmt: skip
    SCALE: tl.constexpr = OPTIONS[0]
    SHIFT_FIRST: tl.constexpr = OPTIONS[1]
    RECIPROCAL: tl.constexpr = OPTIONS[2]
    eps, clamp = settings[0], settings[1]
    shift, a = affine_params(params)
    s, _ = affine_scale(a, eps, clamp, SCALE)
    # NaN in an element is NaN in its log-determinant too, which depends on the logit alone.
    slope = tl.where(x == x, 1.0 / s if RECIPROCAL else s, x)
    value = x
    if SHIFT_FIRST != INVERSE:
        value = value - shift if INVERSE else value + shift
    value = value / s if RECIPROCAL != INVERSE else value * s
    if SHIFT_FIRST == INVERSE:
        value = value - shift if INVERSE else value + shift
    return value, slope, affine_log_slope(a, slope, clamp, SCALE, RECIPROCAL)


@triton.jit
def affine_gradient(
    x, params, grad_output, grad_logabsdet, settings, OPTIONS: tl.constexpr, INVERSE: tl.constexpr
):  # fmt: skip
    SCALE: tl.constexpr = OPTIONS[0]
    SHIFT_FIRST: tl.constexpr = OPTIONS[1]
    RECIPROCAL: tl.constexpr = OPTIONS[2]
    eps, clamp = settings[0], settings[1]
    shift, a = affine_params(params)
    s, log_slope = affine_scale(a, eps, clamp, SCALE)
    key = x
    if SHIFT_FIRST != INVERSE:
        key = key - shift if INVERSE else key + shift
    # d scaled_key / d log s = +-scaled_key.
    scaled_key = key / s if RECIPROCAL != INVERSE else key * s
    grad_x = grad_output / s if RECIPROCAL != INVERSE else grad_output * s
    grad_log_scale = tl.fma(grad_output, scaled_key, grad_logabsdet)
    grad_logit = (-grad_log_scale if RECIPROCAL != INVERSE else grad_log_scale) * log_slope
    grad_shift = grad_output if SHIFT_FIRST == INVERSE else grad_x
    grad_shift = -grad_shift if INVERSE else grad_shift
    if len(params) == 1:
        return grad_x, ((grad_shift, grad_logit),)
    else:
        return grad_x, ((grad_shift,), (grad_logit,))
