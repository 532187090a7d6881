// exp, log and functions of them, for lanes. Errors are 1-2 ulp on the ranges that transforms use.
//
// The polynomials interpolate at Chebyshev nodes, computed with 40 digits, which is near-minimax.
// The number beside a polynomial is its relative error.
#pragma once

#include "lane.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// Logits are clamped to this limit. Beyond it a sigmoid no longer changes in float32; the gradient
// is zero.
inline constexpr double kLogitLimit = 40.0;
// The limit for softplus, which grows linearly and so needs a much larger one.
inline constexpr double kSoftplusLimit = 1152921504606846976.0;  // 2^60

template <class V>
ROBUSTFLOW_FN V horner(V, V constant) {
  return constant;
}
template <class V, class... C>
ROBUSTFLOW_FN V horner(V x, V constant, C... higher) {
  return constant + x * horner(x, V(higher)...);
}

// (e^r - 1 - r) / r^2 for |r| <= log(2) / 2.
template <class V>
ROBUSTFLOW_FN V exp_series(V r) {
  if constexpr (is_float32<V>) {  // 8e-9
    return horner(r, V(0.5), 0.16666576989698776, 0.041666554617204574, 0.0083631790527225774,
                  0.0013926183587713495);
  } else {  // 2e-19
    return horner(r, V(0.5), 0.16666666666666670991, 0.041666666666666669755,
                  0.0083333333333261351258, 0.0013888888888883748305, 0.00019841269874820625271,
                  0.000024801587325547741216, 2.755725540020642443e-6, 2.7557273643110295328e-7,
                  2.5105217004720745164e-8, 2.0914686968086877233e-9);
  }
}

inline constexpr double kLog2E = 1.4426950408889634;

// x = n log 2 + r: returns r and 2^n, for x within +-kExponentLimit.
template <class V>
ROBUSTFLOW_FN V reduce_exp(V x, V& power) {
  using T = scalar_t<V>;
  const V shifted = x * V(kLog2E) + V(ieee<T>::round_to_integer);
  const V n = shifted - V(ieee<T>::round_to_integer);
  power = power_of_two(shifted);
  if constexpr (is_float32<V>) {
    return (x - n * V(0.693359375)) - n * V(-2.1219444005469058e-4);
  } else {
    return (x - n * V(0.693147180369123816490)) - n * V(1.90821492927058770002e-10);
  }
}

// e^x is a normal number for |x| up to this.
template <class V>
inline constexpr double kExponentLimit = is_float32<V> ? 87.0 : 700.0;

// e^x for x within +-kExponentLimit.
template <class V>
ROBUSTFLOW_FN V exponential(V x) {
  V power;
  const V r = reduce_exp(x, power);
  return power + power * (r + r * r * exp_series(r));
}

// (2^r - 1) / r for |r| <= 1/2.
template <class V>
ROBUSTFLOW_FN V exp2_series(V r) {
  if constexpr (is_float32<V>) {  // 5e-9
    return horner(r, V(0.69314718802622878), 0.24022650760568127, 0.055503571142190778,
                  0.0096180825572778515, 0.0013390863664371234, 0.00015453162945120690);
  } else {  // 1e-19
    return horner(r, V(0.69314718055994530925), 0.24022650695910071233, 0.055504108664821627039,
                  0.0096181291076284794928, 0.0013333558146406470697, 0.00015403530393370733411,
                  0.000015252733841556772589, 1.321548680870556279e-6, 1.0178057087733941105e-7,
                  7.0548973041554992774e-9, 4.455817908336064493e-10, 2.5729324177362304214e-11);
  }
}

// 2^t for t within +-kExponentLimit / log 2. With t = x log2(e) it is a cheap e^x: rounding t has
// the effect of changing x by half an ulp.
template <class V>
ROBUSTFLOW_FN V exp2_within_limit(V t) {
  const V shifted = t + V(ieee<scalar_t<V>>::round_to_integer);
  const V r = t - (shifted - V(ieee<scalar_t<V>>::round_to_integer));
  const V power = power_of_two(shifted);
  return power + power * (r * exp2_series(r));
}
// 2^t for t <= 0.
template <class V>
ROBUSTFLOW_FN V exp2_of_negative(V t) {
  return exp2_within_limit(max(V(-kExponentLimit<V> * kLog2E), t));
}

// e^x and e^x - 1 for x within +-kExponentLimit, without cancellation near 0.
template <class V>
struct ExponentialPair {
  V value, minus_one;
};
template <class V>
ROBUSTFLOW_FN ExponentialPair<V> exponential_pair(V x) {
  V power;
  const V r = reduce_exp(x, power);
  const V p = r + r * r * exp_series(r);
  return {power + power * p, power * p + (power - V(1))};
}

// log(1 + f) for 1 + f in [sqrt 1/2, sqrt 2]: with s = f / (2 + f) it is 2 atanh s, and 2s = f - s
// f.
template <class V>
ROBUSTFLOW_FN V log_one_plus_reduced(V f) {
  const V s = f / (V(2) + f);
  const V z = s * s;
  V series;                       // (2 atanh(s) / s - 2) / z
  if constexpr (is_float32<V>) {  // 3e-9
    series = horner(z, V(0.66666685095429069), 0.39988757716604847, 0.29580985929974423);
  } else {  // 3e-20
    series = horner(z, V(0.66666666666666666463), 0.40000000000000883236, 0.28571428570799785031,
                    0.22222222392581045097, 0.18181795547521136235, 0.15386244737621666606,
                    0.13268638369266823879, 0.1308803485092755383);
  }
  return f - s * (f - z * series);
}

// log(mantissa * 2^exponent), with the mantissa in [sqrt 1/2, sqrt 2).
template <class V>
ROBUSTFLOW_FN V log_of_split(V mantissa, V exponent) {
  const V low = is_float32<V> ? V(-2.1219444005469058e-4) : V(1.90821492927058770002e-10);
  const V high = is_float32<V> ? V(0.693359375) : V(0.693147180369123816490);
  return exponent * high + (exponent * low + log_one_plus_reduced(mantissa - V(1)));
}

// log v, v positive and normal; NaN and infinity give NaN.
template <class V>
ROBUSTFLOW_FN V logarithm(V v) {
  V mantissa, exponent;
  split(v, mantissa, exponent);
  return log_of_split(mantissa, exponent) + (v - v);
}

// log(1 + u) for u in [0, 1].
template <class V>
ROBUSTFLOW_FN V log_one_plus(V u) {
  const auto big = u > V(0.41421356237309505);
  const V f = select(big, V(V(0.5) * (u - V(1))), u);
  return log_one_plus_reduced(f) + select(big, V(0.69314718055994531), V(0));
}

// e^logit, with the logit clamped to +-kLogitLimit.
template <class V>
ROBUSTFLOW_FN V saturating_exponential(V logit) {
  return exponential(min(V(kLogitLimit), max(V(-kLogitLimit), logit)));
}
// d clamped logit / d logit: 1, or 0 strictly beyond the limit.
template <class V>
ROBUSTFLOW_FN V saturation(V logit) {
  return select(absolute(logit) > V(kLogitLimit), V(0), V(1));
}

// A sigmoid and 1 - sigmoid, computed separately so that neither cancels. Logits are clamped to
// +-kLogitLimit.
template <class V>
struct Sigmoid {
  V value, complement;

  // d value / d logit: zero strictly beyond the limit.
  ROBUSTFLOW_FN V slope(V logit) const {
    return select(absolute(logit) > V(kLogitLimit), V(0), V(value * complement));
  }
};
template <class V>
ROBUSTFLOW_FN Sigmoid<V> sigmoid(V logit) {
  const V e = saturating_exponential(logit);
  const V complement = V(1) / (V(1) + e);
  return {e * complement, complement};
}

// log(1 + e^logit) and its derivative.
template <class V>
struct Softplus {
  V value, slope;
};
template <class V>
ROBUSTFLOW_FN Softplus<V> softplus(V logit) {
  const V e = exp2_of_negative(V(V(-kLog2E) * absolute(logit)));
  const V large = V(1) / (V(1) + e);
  const V slope = select(logit > V(0), large, V(e * large));
  return {max(V(0), min(V(kSoftplusLimit), logit)) + log_one_plus(e),
          select(logit > V(kSoftplusLimit), V(0), slope)};
}

// x / (1 + |x| / bound), which stays within +-bound, and its derivative.
template <class V>
struct SoftClip {
  V value, slope;
};
template <class V>
ROBUSTFLOW_FN SoftClip<V> soft_clip(V x, V inverse_bound) {
  // Beyond `largest` the result equals the bound to the last bit; without the clamp, q would
  // underflow for the largest x.
  const V largest = V(is_float32<V> ? 1e30 : 1e200);
  const V clipped = min(largest, max(V(0) - largest, x));
  const V q = V(1) / (V(1) + absolute(clipped) * inverse_bound);
  return {clipped * q, q * q};
}

// tanh a and its derivative.
template <class V>
struct Tanh {
  V value, slope;
};
template <class V>
ROBUSTFLOW_FN Tanh<V> hyperbolic_tangent(V a) {
  const auto e = exponential_pair(V(V(-2) * min(V(kLogitLimit), absolute(a))));
  const V q = V(1) / (V(1) + e.value);
  const V magnitude = (V(0) - e.minus_one) / (V(1) + e.value);
  return {select(a < V(0), V(0) - magnitude, magnitude), V(4) * e.value * q * q};
}

// atan a and its derivative.
template <class V>
struct Arctangent {
  V value, slope;
};
template <class V>
ROBUSTFLOW_FN Arctangent<V> arctangent(V a) {
  const V t = absolute(a);
  // If |a| > 1, atan|a| = pi/2 - atan(1/|a|). If u > tan(pi/8), atan u = pi/4 + atan((u-1)/(u+1)).
  const auto steep = t > V(1);
  const V u = select(steep, V(1) / t, t);
  const auto middle = u > V(0.41421356237309505);
  const V v = select(middle, (u - V(1)) / (u + V(1)), u);
  const V z = v * v;
  V series;                       // (atan(v) / v - 1) / z
  if constexpr (is_float32<V>) {  // 3e-9
    series = horner(z, V(-0.33333331753816969), 0.19999538794771921, -0.14263897112598675,
                    0.10743099667674570, -0.064498352245914959);
  } else {  // 5e-18
    series = horner(z, V(-0.33333333333333330127), 0.19999999999995479198, -0.1428571428465789355,
                    0.111111110145610136, -0.090909045498846109542, 0.076921825351166482024,
                    -0.066645022156714471037, 0.05858068756861510547, -0.050850304928109405433,
                    0.039219552532551294092, -0.019162068915902573948);
  }
  const V first = (v + v * z * series) + select(middle, V(0.78539816339744831), V(0));
  const V value = select(steep, V(1.5707963267948966) - first, first);
  const V clipped = min(V(is_float32<V> ? 1e18 : 1e150), t);  // its square is finite
  return {select(a < V(0), V(0) - value, value), V(1) / (V(1) + clipped * clipped)};
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
