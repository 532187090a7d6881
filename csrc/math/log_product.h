// The logarithm of a product of many factors, with one log: the mantissas are multiplied, the
// exponents added.
#pragma once

#include "elementary.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// Factors are positive and normal. A NaN or infinite factor makes the result NaN.
template <class V>
class LogProduct {
 public:
  // After at most this many factors the caller calls fold(), so that the product of mantissas, each
  // below 2, does not overflow.
  static constexpr int kMaxFactors = 64;

  ROBUSTFLOW_FN void multiply(V factor) {
    // mantissa_field() is finite for NaN and infinity; (factor - factor) is then NaN, else 0.
    mantissa_ = mantissa_ * mantissa_field(factor) + (factor - factor);
    exponents_ = exponents_ + exponent_field(factor);
    ++factors_;
  }
  ROBUSTFLOW_FN void fold() {
    const V nan_or_zero = mantissa_ - mantissa_;
    exponents_ = exponents_ + exponent_field(mantissa_);
    mantissa_ = mantissa_field(mantissa_) + nan_or_zero;
    ++factors_;
  }
  // The logarithm of the product is log(mantissa) + exponent * log(2), with the mantissa in
  // [sqrt 1/2, sqrt 2).
  struct Parts {
    V mantissa, exponent;
  };
  ROBUSTFLOW_FN Parts parts() const {
    Parts out;
    V last, whole;
    split(mantissa_, out.mantissa, last);
    out.mantissa = out.mantissa + (mantissa_ - mantissa_);
    convert(exponents_, whole);
    out.exponent = (whole - V(ieee<scalar_t<V>>::bias) * V(factors_)) + last;
    return out;
  }

 private:
  V mantissa_ = V(1);
  integer_t<V> exponents_ = {};  // a sum of biased exponents
  int factors_ = 0;
};

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
