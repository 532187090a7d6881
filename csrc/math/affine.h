// The conditional affine transform: y = (x + shift) s, or x s + shift. Two parameters per element:
// the shift, and a logit a that determines the scale s.
#pragma once

#include "elementary.h"
#include "transform.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// The numbers are those of the operators' schema (robustflow/_transforms.py).
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
  bool reciprocal;   // the scale is 1 / s
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

  // The logarithm of a scale that is an exponential, and its derivative with respect to the logit.
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

  // s, before `reciprocal` is applied, and d log s / d logit.
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
        const Softplus<V> s = softplus(max(V(-kLogitLimit), a));
        const V value = s.value + eps;
        return {value, select(a < V(-kLogitLimit), V(0), s.slope / value)};
      }
      default: {
        const Exponent e = exponent(a);
        return {saturating_exponential(e.value), e.slope * saturation(e.value)};
      }
    }
  }

  // The logarithm of the forward transform's slope: its logabsdet.
  ROBUSTFLOW_FN V log_slope(V a, V slope) const {
    if (scale == Scale::sigmoid || scale == Scale::softplus) return logarithm(slope);
    const V e = min(V(kLogitLimit), max(V(-kLogitLimit), exponent(a).value));
    return select(slope == slope, reciprocal ? V(0) - e : e, slope);
  }

  template <bool inverse>
  ROBUSTFLOW_FN Output transform(V x, V shift, V a) const {
    const V s = scaled(a).value;
    const V key = shift_first != inverse ? x + (inverse ? V(0) - shift : shift) : x;
    const V scaled_key = reciprocal != inverse ? key / s : key * s;
    const V value =
        shift_first == inverse ? scaled_key + (inverse ? V(0) - shift : shift) : scaled_key;
    // The slope depends only on the logit. Where x is NaN, the slope is made NaN, too.
    return {value, select(x == x, reciprocal ? V(1) / s : s, x)};
  }

  template <bool inverse>
  ROBUSTFLOW_FN Gradient gradient(V x, V shift, V a, V grad_y, V grad_logabsdet) const {
    const Scaled s = scaled(a);
    const V key = shift_first != inverse ? x + (inverse ? V(0) - shift : shift) : x;
    const V scaled_key = reciprocal != inverse ? key / s.value : key * s.value;
    const V grad_x = reciprocal != inverse ? grad_y / s.value : grad_y * s.value;
    // d scaled_key / d log s = +-scaled_key.
    const V grad_log_scale = grad_y * scaled_key + grad_logabsdet;
    const V grad_logit =
        (reciprocal != inverse ? V(0) - grad_log_scale : grad_log_scale) * s.log_slope;
    const V grad_added = shift_first == inverse ? grad_y : grad_x;
    return {grad_x, inverse ? V(0) - grad_added : grad_added, grad_logit};
  }
};

template <class V>
struct AffineOp {
  using Lane = V;
  using Config = AffineConfig;
  static constexpr int kGroups = 2, kParameters = 2, kMaxWorkspace = 0;
  static constexpr int kMinBlocksPerMultiprocessor[] = {is_float32<V> ? 8 : 4,
                                                        is_float32<V> ? 8 : 4};
  enum Group { kShift, kScale };

  Affine<V> math;

  ROBUSTFLOW_FN explicit AffineOp(const Config& config, const double* = nullptr) : math(config) {}

  ROBUSTFLOW_FN int column(int group) const { return group; }
  ROBUSTFLOW_FN int workspace() const { return 0; }

  template <bool inverse, class Parameter, class Workspace>
  ROBUSTFLOW_FN auto transform(V x, const Parameter& p, Workspace) const {
    return math.template transform<inverse>(x, p(kShift, 0), p(kScale, 0));
  }
  template <class Parameter>
  ROBUSTFLOW_FN V log_slope(const Parameter& p, V slope) const {
    return math.log_slope(p(kScale, 0), slope);
  }
  template <bool inverse, class Parameter, class Workspace, class Sink>
  ROBUSTFLOW_FN V gradient(V x, const Parameter& p, Workspace, V gy, V gl, Sink&& sink) const {
    const auto g = math.template gradient<inverse>(x, p(kShift, 0), p(kScale, 0), gy, gl);
    sink(kShift, 0, g.shift);
    sink(kScale, 0, g.logit);
    return g.x;
  }
};

struct AffineTransform : OneAdapter<AffineOp> {
  using Config = AffineConfig;
  static constexpr int kGroups = 2, kConstants = 0;
  static constexpr Packs kPacks{.avx512 = {2, 1}, .avx = {2, 1}, .others = {2, 1}};

  static Settings<Config> settings(DType, bool inverse, std::int64_t scale, double eps,
                                   double clamp, bool shift_first, bool reciprocal) {
    return {inverse, {static_cast<Scale>(scale), eps, clamp, shift_first, reciprocal}, {1, 1}};
  }
};

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
