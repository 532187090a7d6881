// The conditional affine transform: y = (x + shift) s, or x s + shift. Two parameters an element:
// shift and scale logit.
#pragma once

#include "elementary.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// The numbers are those of the operators' schema (robustflow/ops/transforms.py).
enum class Scale : int {
  sigmoid = 0,       // sigmoid(a + 2) + eps: SRFlow, LLFlow
  exp = 1,           // exp(a)
  softplus = 2,      // softplus(a) + eps
  atan_exp = 3,      // exp(clamp 0.636 atan(a)): FrEIA
  tanh_exp = 4,      // exp(clamp tanh(a)): RealNVP, FrEIA's AllInOneBlock
  softclip_exp = 5,  // exp(a / (1 + |a| / clamp)): zuko
};

struct AffineConfig {
  Scale scale;
  double eps, clamp;
  bool shift_first;  // (x + shift) s rather than x s + shift
  bool reciprocal;   // use 1 / s for s
};

template <class V>
struct Affine {
  V eps, clamp;
  Scale scale;
  bool shift_first, reciprocal;

  struct Output {
    V value, slope;  // the transformed element and dy/dx of the forward transform
  };
  struct Gradient {
    V x, shift, logit;
  };

  ROBUSTFLOW_FN explicit Affine(const AffineConfig& c)
      : eps(c.eps),
        clamp(c.clamp),
        scale(c.scale),
        shift_first(c.shift_first),
        reciprocal(c.reciprocal) {}

  // The exponent of a scale that is an exponential, and its derivative by the logit.
  struct Exponent {
    V value, slope;
  };
  ROBUSTFLOW_FN Exponent exponent(V a) const {
    switch (scale) {
      case Scale::atan_exp: {
        const Arctangent<V> t = arctangent(a);
        const V factor = V(0.636) * clamp;
        return {factor * t.value, factor * t.slope};
      }
      case Scale::tanh_exp: {
        const Tanh<V> t = hyperbolic_tangent(a);
        return {clamp * t.value, clamp * t.slope};
      }
      case Scale::softclip_exp: {
        const SoftClip<V> c = soft_clip(a, V(1) / clamp);
        return {c.value, c.slope};
      }
      default:
        return {a, V(1)};
    }
  }

  // The scale before the reciprocal, and the derivative of its logarithm by the logit.
  struct Scaled {
    V value, log_slope;
  };
  ROBUSTFLOW_FN Scaled scaled(V a) const {
    switch (scale) {
      case Scale::sigmoid: {
        const V logit = a + V(2);
        const Sigmoid<V> s = sigmoid(logit);
        const V value = s.value + eps;
        return {value, s.slope(logit) / value};
      }
      case Scale::softplus: {
        const Softplus<V> s = softplus(at_least(V(-kLogitLimit), a));
        const V value = s.value + eps;
        return {value, select(a < V(-kLogitLimit), V(0), s.slope / value)};
      }
      default: {
        const Exponent e = exponent(a);
        return {saturating_exponential(e.value), e.slope * saturation(e.value)};
      }
    }
  }

  // logabsdet of the forward transform, given its slope.
  ROBUSTFLOW_FN V log_slope(V a, V slope) const {
    if (scale == Scale::sigmoid || scale == Scale::softplus) return logarithm(slope);
    const V e = at_most(V(kLogitLimit), at_least(V(-kLogitLimit), exponent(a).value));
    return select(slope == slope, reciprocal ? V(0) - e : e, slope);
  }

  template <bool inverse>
  ROBUSTFLOW_FN Output transform(V x, V shift, V a) const {
    const V s = scaled(a).value;
    const V key = shift_first != inverse ? x + (inverse ? V(0) - shift : shift) : x;
    const V moved = reciprocal != inverse ? key / s : key * s;
    const V value = shift_first == inverse ? moved + (inverse ? V(0) - shift : shift) : moved;
    // NaN in an element is NaN in its log-determinant too, which depends on the logit alone.
    return {value, select(x == x, reciprocal ? V(1) / s : s, x)};
  }

  template <bool inverse>
  ROBUSTFLOW_FN Gradient gradient(V x, V shift, V a, V grad_y, V grad_logabsdet) const {
    const Scaled s = scaled(a);
    const V key = shift_first != inverse ? x + (inverse ? V(0) - shift : shift) : x;
    const V moved = reciprocal != inverse ? key / s.value : key * s.value;
    const V by_x = reciprocal != inverse ? grad_y / s.value : grad_y * s.value;
    // moved is the scale's share of the output: d moved / d log s = +-moved.
    const V by_log = grad_y * moved + grad_logabsdet;
    const V by_logit = (reciprocal != inverse ? V(0) - by_log : by_log) * s.log_slope;
    const V by_output = shift_first == inverse ? grad_y : by_x;
    return {by_x, inverse ? V(0) - by_output : by_output, by_logit};
  }
};

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
