// The lane of a GPU's thread in single precision, on the instructions that cuda/device.h defines
// before it includes this: fused, max_nan, min_nan, reciprocal_approximately, exp2_approximately and
// square_root_approximately.
#pragma once

#include "../math/lane.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// A float whose division is a reciprocal with one refinement step: within 1.5 ulp. Exact division
// calls a function for cases that these formulas never have. A divisor beyond 2^126, or 0, gives a
// result that is not finite.
struct Single {
  using scalar = float;
  using mask = bool;
  using integer = std::int32_t;

  float v;

  Single() = default;
  template <class T>
  ROBUSTFLOW_FN constexpr explicit Single(T value) : v(static_cast<float>(value)) {}

  ROBUSTFLOW_FN friend Single operator+(Single a, Single b) { return Single(a.v + b.v); }
  ROBUSTFLOW_FN friend Single operator-(Single a, Single b) { return Single(a.v - b.v); }
  ROBUSTFLOW_FN friend Single operator*(Single a, Single b) { return Single(a.v * b.v); }
  ROBUSTFLOW_DEVICE friend Single operator/(Single a, Single b) {
    const float r = reciprocal_approximately(b.v);
    return Single(a.v * fused(r, fused(-b.v, r, 1.0f), r));
  }
  ROBUSTFLOW_FN friend bool operator<(Single a, Single b) { return a.v < b.v; }
  ROBUSTFLOW_FN friend bool operator<=(Single a, Single b) { return a.v <= b.v; }
  ROBUSTFLOW_FN friend bool operator>(Single a, Single b) { return a.v > b.v; }
  ROBUSTFLOW_FN friend bool operator>=(Single a, Single b) { return a.v >= b.v; }
  ROBUSTFLOW_FN friend bool operator==(Single a, Single b) { return a.v == b.v; }
};

ROBUSTFLOW_FN Single select(bool mask, Single yes, Single no) {
  return Single(mask ? yes.v : no.v);
}
ROBUSTFLOW_DEVICE Single at_least(Single limit, Single v) { return Single(max_nan(limit.v, v.v)); }
ROBUSTFLOW_DEVICE Single at_most(Single limit, Single v) { return Single(min_nan(limit.v, v.v)); }
ROBUSTFLOW_FN Single absolute(Single v) { return Single(__builtin_fabsf(v.v)); }
ROBUSTFLOW_DEVICE Single square_root(Single v) { return Single(square_root_approximately(v.v)); }
ROBUSTFLOW_FN Single power_of_two(Single shifted) { return Single(power_of_two(shifted.v)); }
ROBUSTFLOW_FN void split(Single v, Single& mantissa, Single& exponent) {
  // Adding the rounding constant's bits turns the small whole number into a floating one without a
  // conversion, which is four times slower than an addition.
  constexpr int kMagic = 0x4b40007f;  // ieee<float>::round_to_integer
  const int e = (to_bits(v.v) - ieee<float>::sqrt_half) >> ieee<float>::mantissa_bits;
  exponent = Single(from_bits(e + kMagic) - ieee<float>::round_to_integer);
  mantissa = Single(from_bits(to_bits(v.v) - (e << ieee<float>::mantissa_bits)));
}
ROBUSTFLOW_FN Single mantissa_field(Single v) { return Single(mantissa_field(v.v)); }
ROBUSTFLOW_FN std::int32_t exponent_field(Single v) { return exponent_field(v.v); }
ROBUSTFLOW_FN void convert(std::int32_t n, Single& out) { out = Single(n); }
// e^x for x within +-87: 2^t, with a first-order correction for the rounding of t = x log2(e). At
// worst 3.6 ulp: 2 of 2^t and 1.6 of its own.
ROBUSTFLOW_DEVICE Single exponential(Single x) {
  const float t = x.v * 1.44269502f;
  const float lost = fused(t, 1.90465421e-9f, fused(t, -0.693147182f, x.v));  // x - t log 2
  const float power = exp2_approximately(t);
  return Single(fused(power, lost, power));
}
// 2^t, within 2 ulp; t may have any value, so neither needs a limit.
ROBUSTFLOW_DEVICE Single exp2_within_limit(Single t) { return Single(exp2_approximately(t.v)); }
ROBUSTFLOW_DEVICE Single exp2_of_negative(Single t) { return exp2_within_limit(t); }

ROBUSTFLOW_FN float value_of(Single v) { return v.v; }
ROBUSTFLOW_FN double value_of(double v) { return v; }

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
