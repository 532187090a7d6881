// The logarithm of many factors by one: a product of mantissas beside a sum of exponents.
#pragma once

#include "elementary.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// NaN and infinite factors make the result NaN.
template <class V>
class LogProduct {
 public:
  // So many factors can be multiplied before the product must be folded.
  static constexpr int kMostFactors = 64;

  ROBUSTFLOW_FN void multiply(V factor) {
    V m, e;
    split(factor, m, e);
    mantissa_ = mantissa_ * m + (factor - factor);  // NaN and infinity have no mantissa
    exponent_ = exponent_ + e;
  }
  ROBUSTFLOW_FN void fold() {
    V m, e;
    split(mantissa_, m, e);
    mantissa_ = m + (mantissa_ - mantissa_);
    exponent_ = exponent_ + e;
  }
  // The logarithm of the product is log(mantissa) + exponent log 2, with a mantissa as split()
  // gives it.
  struct Parts {
    V mantissa, exponent;
  };
  ROBUSTFLOW_FN Parts parts() {
    fold();
    return {mantissa_, exponent_};
  }

 private:
  V mantissa_ = V(1), exponent_ = V(0);
};

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
