# mypy: allow-untyped-defs, allow-incomplete-defs
"""exp, log and functions of them, on tensors of float32 or float64: csrc/math/elementary.h.

Every product that is added to something is an explicit ``fma``, so that two kernels, or two layouts
of one, cannot round an element differently. float32 uses the hardware's ``exp2``, corrected for the
rounding of its argument; float64 uses Triton's ``exp``. Where csrc/math gives a value and its
derivative, so do these functions, as a tuple.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Beyond this limit a logit changes nothing in float32: sigmoids and exponentials saturate, and
# their gradient is zero.
LOGIT_LIMIT = tl.constexpr(40.0)
# The same for softplus, which grows linearly.
SOFTPLUS_LIMIT = tl.constexpr(2.0**60)
# log2(e) as a float32, and the rest of it.
LOG2_E = tl.constexpr(1.4426950216293335)
LOG2_E_REST = tl.constexpr(1.9259629911266175e-08)
LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def maximum(limit, v):
    """max(limit, v); NaN stays."""
    return tl.maximum(v, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(limit, v):
    """min(limit, v); NaN stays."""
    return tl.minimum(v, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exponential(x):
    """e^x for x within +-87."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    scaled = x * LOG2_E
    rest = tl.fma(x, LOG2_E_REST, tl.fma(x, LOG2_E, -scaled))
    power = tl.exp2(scaled)
    return tl.fma(power, rest * LOG_2, power)


@triton.jit
def exponential_of_negative(x):
    """e^x for x <= 0, which stays a normal number."""
    return exponential(maximum(-87.0, x))


@triton.jit
def exponential_minus_one(x):
    """e^x - 1 for x within +-87, without cancellation; (e^r - 1 - r) / r^2 is a polynomial."""
    if x.dtype == tl.float64:
        shifted = x * 1.4426950408889634 + 6755399441056767.0  # 1.5 2^52 + 1023
        n = shifted - 6755399441056767.0
        power = (shifted.to(tl.int64, bitcast=True) << 52).to(tl.float64, bitcast=True)
        r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
        series = r * 2.0914686968086877233e-9 + 2.5105217004720745164e-8
        series = r * series + 2.7557273643110295328e-7
        series = r * series + 2.755725540020642443e-6
        series = r * series + 0.000024801587325547741216
        series = r * series + 0.00019841269874820625271
        series = r * series + 0.0013888888888883748305
        series = r * series + 0.0083333333333261351258
        series = r * series + 0.041666666666669755
        series = r * series + 0.16666666666666670991
    else:
        shifted = x * 1.4426950408889634 + 12583039.0  # 1.5 2^23 + 127
        n = shifted - 12583039.0
        power = (shifted.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)
        r = (x - n * 0.693359375) - n * -2.1219444005469058e-4
        series = r * 0.0013926183587713495 + 0.0083631790527225774
        series = r * series + 0.041666554617204574
        series = r * series + 0.16666576989698776
    series = r * series + 0.5
    return tl.fma(power, tl.fma(r * r, series, r), power - 1.0)


@triton.jit
def split_exponent(v):
    """(mantissa, exponent): v = mantissa 2^exponent, mantissa in [sqrt 1/2, sqrt 2); v normal."""
    if v.dtype == tl.float64:
        bits = v.to(tl.int64, bitcast=True)
        exponent = (bits - 0x3FE6A09E667F3BCD) >> 52
        mantissa = (bits - (exponent << 52)).to(tl.float64, bitcast=True)
    else:
        bits = v.to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23
        mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    return mantissa, exponent.to(v.dtype)


@triton.jit
def log_one_plus(u):
    """log(1 + u) for u in [0, 1]: with s = f / (2 + f) it is 2 atanh s, and 2 s = f - s f."""
    big = u > 0.41421356237309505
    f = tl.where(big, 0.5 * (u - 1.0), u)
    s = f / (f + 2.0)
    z = s * s
    if u.dtype == tl.float64:
        series = z * 0.1308803485092755383 + 0.13268638369266823879
        series = z * series + 0.15386244737621666606
        series = z * series + 0.18181795547521136235
        series = z * series + 0.22222222392581045097
        series = z * series + 0.28571428570799785031
        series = z * series + 0.40000000000000883236
        series = z * series + 0.66666666666666666463
    else:
        series = z * 0.29580985929974423 + 0.39988757716604847
        series = z * series + 0.66666685095429069
    reduced = tl.fma(-s, tl.fma(-z, series, f), f)
    return reduced + big.to(u.dtype) * LOG_2


@triton.jit
def saturating_exponential(logit):
    """e^logit, saturating."""
    return exponential(minimum(LOGIT_LIMIT, maximum(-LOGIT_LIMIT, logit)))


@triton.jit
def saturated(logit):
    """Whether the gradient of a saturating function is zero."""
    return tl.abs(logit) > LOGIT_LIMIT


@triton.jit
def sigmoid(logit):
    """(value, complement), each from its own formula; saturating."""
    e = saturating_exponential(logit)
    complement = 1.0 / (e + 1.0)
    return e * complement, complement


@triton.jit
def softplus(logit):
    """(log(1 + e^logit), slope)."""
    e = exponential_of_negative(-tl.abs(logit))
    large = 1.0 / (e + 1.0)
    slope = tl.where(logit > 0.0, large, e * large)
    value = maximum(0.0, minimum(SOFTPLUS_LIMIT, logit)) + log_one_plus(e)
    return value, tl.where(logit > SOFTPLUS_LIMIT, 0.0, slope)


@triton.jit
def soft_clip(x, inverse_bound):
    """(x / (1 + |x| / bound), slope); the value stays within +-bound."""
    # Beyond this the bound is reached to the last bit; near the largest number q would underflow.
    clipped = minimum(1e30, maximum(-1e30, x))
    q = 1.0 / (tl.abs(clipped) * inverse_bound + 1.0)
    return clipped * q, q * q


@triton.jit
def hyperbolic_tangent(a):
    """(tanh a, slope)."""
    minus_one = exponential_minus_one(-2.0 * minimum(LOGIT_LIMIT, tl.abs(a)))
    q = 1.0 / (minus_one + 2.0)
    magnitude = -minus_one / (minus_one + 2.0)
    return tl.where(a < 0.0, -magnitude, magnitude), 4.0 * (minus_one + 1.0) * q * q


@triton.jit
def arctangent(a):
    """(atan a, slope)."""
    t = tl.abs(a)
    # |a| > 1: pi/2 - atan(1/|a|); then u > tan(pi/8): pi/4 + atan((u - 1) / (u + 1)).
    steep = t > 1.0
    u = tl.where(steep, 1.0 / t, t)
    middle = u > 0.41421356237309505
    v = tl.where(middle, (u - 1.0) / (u + 1.0), u)
    z = v * v
    if a.dtype == tl.float64:
        series = z * -0.019162068915902573948 + 0.039219552532551294092
        series = z * series - 0.050850304928109405433
        series = z * series + 0.05858068756861510547
        series = z * series - 0.066645022156714471037
        series = z * series + 0.076921825351166482024
        series = z * series - 0.090909045498846109542
        series = z * series + 0.111111110145610136
        series = z * series - 0.1428571428465789355
        series = z * series + 0.19999999999995479198
        series = z * series - 0.33333333333333330127
    else:
        series = z * -0.064498352245914959 + 0.10743099667674570
        series = z * series - 0.14263897112598675
        series = z * series + 0.19999538794771921
        series = z * series - 0.33333331753816969
    first = tl.fma(v * z, series, v) + middle.to(a.dtype) * 0.78539816339744831
    value = tl.where(steep, 1.5707963267948966 - first, first)
    clipped = minimum(1e18, t)  # its square is finite
    return tl.where(a < 0.0, -value, value), 1.0 / (clipped * clipped + 1.0)
