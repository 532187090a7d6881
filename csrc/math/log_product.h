// The logarithm of a product of many factors by a single log: the product of the mantissas and the
// sum of the exponents.
#pragma once

#include "elementary.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// NaN and infinite factors make the result NaN.
template <class V>
class LogProduct {
 public:
  // The most factors before the product must be folded.
  static constexpr int kMaxFactors = 64;

  ROBUSTFLOW_FN void multiply(V factor) {
    // NaN and infinity have no mantissa.
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
  // The logarithm of the product is log(mantissa) + exponent log 2, with a mantissa as split()
  // gives it.
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
  integer_t<V> exponents_ = {};  // biased exponents
  int factors_ = 0;
};

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
