// The float32 lane of a GPU thread, with approximate division and square root. cuda/device.h
// includes this header after it has defined the instructions used here: fused_multiply_add,
// max_nan, min_nan, reciprocal_approximately, exp2_approximately and square_root_approximately.
#pragma once

#include "../math/lane.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// A float whose division is an approximate reciprocal with one Newton step: within 1.5 ulp. IEEE
// division would call a function to handle cases that these formulas never have. The result is not
// finite if the divisor is 0 or beyond 2^126.
struct FastFloat {
  using scalar = float;
  using mask = bool;
  using integer = std::int32_t;

  float v;

  FastFloat() = default;
  template <class T>
  ROBUSTFLOW_FN constexpr explicit FastFloat(T value) : v(static_cast<float>(value)) {}

  ROBUSTFLOW_FN friend FastFloat operator+(FastFloat a, FastFloat b) {
    return FastFloat(a.v + b.v);
  }
  ROBUSTFLOW_FN friend FastFloat operator-(FastFloat a, FastFloat b) {
    return FastFloat(a.v - b.v);
  }
  ROBUSTFLOW_FN friend FastFloat operator*(FastFloat a, FastFloat b) {
    return FastFloat(a.v * b.v);
  }
  ROBUSTFLOW_DEVICE friend FastFloat operator/(FastFloat a, FastFloat b) {
    const float r = reciprocal_approximately(b.v);
    return FastFloat(a.v * fused_multiply_add(r, fused_multiply_add(-b.v, r, 1.0f), r));
  }
  ROBUSTFLOW_FN friend bool operator<(FastFloat a, FastFloat b) { return a.v < b.v; }
  ROBUSTFLOW_FN friend bool operator<=(FastFloat a, FastFloat b) { return a.v <= b.v; }
  ROBUSTFLOW_FN friend bool operator>(FastFloat a, FastFloat b) { return a.v > b.v; }
  ROBUSTFLOW_FN friend bool operator>=(FastFloat a, FastFloat b) { return a.v >= b.v; }
  ROBUSTFLOW_FN friend bool operator==(FastFloat a, FastFloat b) { return a.v == b.v; }
};

ROBUSTFLOW_FN FastFloat select(bool mask, FastFloat yes, FastFloat no) {
  return FastFloat(mask ? yes.v : no.v);
}
ROBUSTFLOW_DEVICE FastFloat max(FastFloat limit, FastFloat v) {
  return FastFloat(max_nan(limit.v, v.v));
}
ROBUSTFLOW_DEVICE FastFloat min(FastFloat limit, FastFloat v) {
  return FastFloat(min_nan(limit.v, v.v));
}
ROBUSTFLOW_FN FastFloat absolute(FastFloat v) { return FastFloat(__builtin_fabsf(v.v)); }
ROBUSTFLOW_DEVICE FastFloat square_root(FastFloat v) {
  return FastFloat(square_root_approximately(v.v));
}
ROBUSTFLOW_FN FastFloat power_of_two(FastFloat shifted) {
  return FastFloat(power_of_two(shifted.v));
}
ROBUSTFLOW_FN void split(FastFloat v, FastFloat& mantissa, FastFloat& exponent) {
  // Adding the bits of round_to_integer converts a small integer to floating point. The conversion
  // instruction has a quarter of an addition's throughput.
  constexpr int kMagic = 0x4b40007f;  // ieee<float>::round_to_integer
  const int e = (to_bits(v.v) - ieee<float>::sqrt_half) >> ieee<float>::mantissa_bits;
  exponent = FastFloat(from_bits(e + kMagic) - ieee<float>::round_to_integer);
  mantissa = FastFloat(from_bits(to_bits(v.v) - (e << ieee<float>::mantissa_bits)));
}
ROBUSTFLOW_FN FastFloat mantissa_field(FastFloat v) { return FastFloat(mantissa_field(v.v)); }
ROBUSTFLOW_FN std::int32_t exponent_field(FastFloat v) { return exponent_field(v.v); }
ROBUSTFLOW_FN void convert(std::int32_t n, FastFloat& out) { out = FastFloat(n); }
// e^x for x within +-87: 2^t with t = x log2(e), and a first-order correction for the rounding of
// t. The error is at most 3.6 ulp: 2 from 2^t, 1.6 from the rest.
ROBUSTFLOW_DEVICE FastFloat exponential(FastFloat x) {
  const float t = x.v * 1.44269502f;
  const float lost = fused_multiply_add(t, 1.90465421e-9f,
                                        fused_multiply_add(t, -0.693147182f, x.v));  // x - t log 2
  const float power = exp2_approximately(t);
  return FastFloat(fused_multiply_add(power, lost, power));
}
// 2^t, within 2 ulp. t may have any value, so neither function clamps it.
ROBUSTFLOW_DEVICE FastFloat exp2_within_limit(FastFloat t) {
  return FastFloat(exp2_approximately(t.v));
}
ROBUSTFLOW_DEVICE FastFloat exp2_of_negative(FastFloat t) { return exp2_within_limit(t); }

ROBUSTFLOW_FN float value_of(FastFloat v) { return v.v; }
ROBUSTFLOW_FN double value_of(double v) { return v; }

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
