// The modified rational-quadratic spline of Hong, Park and Chun (arXiv:2212.04319): two bins in a
// box, slope 1 at its edges, the identity outside, and a shift of the result. Four parameters per
// element: logits of width, height and derivative, and the shift.
#pragma once

#include "elementary.h"
#include "rq_bin.h"
#include "transform.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

struct ModifiedRqConfig {
  double left, right;
  double min_bin, min_derivative;
  bool softclip;         // derivative exp(d / (1 + |d| / c)), c = -log(min_derivative)
  double inverse_bound;  // 1 / c
};

template <class V>
struct ModifiedRq {
  V left, right;
  V smallest, free;  // the minimal size of a bin, and the size that both bins share beyond it
  V min_derivative, free_derivative, inverse_bound;
  bool softclip;

  // Each bin lies between an edge of the box and the inner knot. One formula serves both, from the
  // edge to the inner knot: in the upper bin, x and y change sign.
  struct Element {
    Sigmoid<V> width, height;
    V derivative, exponential;  // at the inner knot; e^d, or 1 with softclip
    RqShape<V> shape;           // from the edge to the inner knot
    V edge, inner_x, inner_y;   // the box is a square: its edges are the same on both axes
    mask_t<V> upper;            // the element lies in the second bin
    mask_t<V> outside;          // it lies outside the box

    // v, or -v if the element's bin is mirrored.
    ROBUSTFLOW_FN V mirrored(V v) const { return select(upper, V(0) - v, v); }
  };
  struct Output {
    V value, slope;  // the transformed element and T = dy/dx of the forward transform
  };
  struct Gradient {
    V x, width, height, derivative, shift;
  };

  ROBUSTFLOW_FN explicit ModifiedRq(const ModifiedRqConfig& c)
      : left(c.left),
        right(c.right),
        smallest((c.right - c.left) * c.min_bin),
        free((c.right - c.left) * (1 - 2 * c.min_bin)),
        min_derivative(c.min_derivative),
        free_derivative(1 - c.min_derivative),
        inverse_bound(c.inverse_bound),
        softclip(c.softclip) {}

  // key: x, or y - shift for the inverse.
  template <bool inverse>
  ROBUSTFLOW_FN Element locate(V key, V w, V h, V d) const {
    Element e;
    e.width = sigmoid(w);
    e.height = sigmoid(h);
    if (softclip) {
      e.exponential = V(1);
      e.derivative = exponential(soft_clip(d, inverse_bound).value);
    } else {
      e.exponential = saturating_exponential(d);
      e.derivative = min_derivative + free_derivative * e.exponential;
    }
    const V W0 = smallest + free * e.width.value;
    const V W1 = smallest + free * e.width.complement;
    const V H0 = smallest + free * e.height.value;
    const V H1 = smallest + free * e.height.complement;
    // Measured from the nearer edge, where the rounding error is smaller.
    e.inner_x = select(W0 < W1, left + W0, right - W1);
    e.inner_y = select(H0 < H1, left + H0, right - H1);
    e.upper = key >= (inverse ? e.inner_y : e.inner_x);
    e.outside = (key <= left) | (key >= right);
    e.edge = select(e.upper, right, left);
    e.shape = {select(e.upper, W1, W0), select(e.upper, H1, H0), V(1), e.derivative};
    return e;
  }

  // Distances of the key from the edge and from the inner knot.
  template <bool inverse>
  ROBUSTFLOW_FN static Distances<V> distances_of(const Element& e, V key) {
    return distances(absolute(key - e.edge), absolute((inverse ? e.inner_y : e.inner_x) - key),
                     inverse ? e.shape.height : e.shape.width);
  }

  template <bool inverse>
  ROBUSTFLOW_FN Output transform(V x, V w, V h, V d, V shift) const {
    const V key = inverse ? x - shift : x;
    const Element e = locate<inverse>(key, w, h, d);
    const auto [a, b] = distances_of<inverse>(e, key);
    const RqPoint<V> point = inverse ? rq_inverse(e.shape, a, b) : rq_forward(e.shape, a, b);
    const V from = select(point.near_left, e.edge, inverse ? e.inner_x : e.inner_y);
    const V step = select(point.near_left, point.left, V(0) - point.right);
    const V value = select(e.outside, key, from + e.mirrored(step));
    return {inverse ? value : value + shift, select(e.outside, V(1), point.slope)};
  }

  // Gradients of grad_y * y + grad_logabsdet * logabsdet, where y is the output of either
  // direction.
  template <bool inverse>
  ROBUSTFLOW_FN Gradient gradient(V x, V w, V h, V d, V shift, V grad_y, V grad_logabsdet) const {
    const V key = inverse ? x - shift : x;
    const Element e = locate<inverse>(key, w, h, d);
    const auto [a, b] = distances_of<inverse>(e, key);
    const V grad = e.mirrored(grad_y);
    const RqGradient<V> g = inverse ? rq_inverse_gradient(e.shape, a, b, grad, grad_logabsdet)
                                    : rq_forward_gradient(e.shape, a, b, grad, grad_logabsdet);
    const V grad_width = e.mirrored(g.x1) * (free * e.width.slope(w));
    const V grad_height = e.mirrored(g.y1) * (free * e.height.slope(h));
    const V log_slope = softclip ? soft_clip(d, inverse_bound).slope
                                 : free_derivative * e.exponential / e.derivative * saturation(d);
    const V grad_derivative = g.log_d1 * log_slope;
    const V grad_x = select(e.outside, grad_y, e.mirrored(g.x));
    const V zero = V(0);
    return {grad_x, select(e.outside, zero, grad_width), select(e.outside, zero, grad_height),
            select(e.outside, zero, grad_derivative), inverse ? zero - grad_x : grad_y};
  }
};

template <class V>
struct ModifiedRqOp {
  using Lane = V;
  using Config = ModifiedRqConfig;
  static constexpr int kGroups = 1, kParameters = 4, kMaxWorkspace = 0;
  static constexpr int kMinBlocksPerMultiprocessor[] = {is_float32<V> ? 8 : 4,
                                                        is_float32<V> ? 8 : 4};

  ModifiedRq<V> math;

  ROBUSTFLOW_FN explicit ModifiedRqOp(const Config& config, const double* = nullptr)
      : math(config) {}

  ROBUSTFLOW_FN int column(int) const { return 0; }
  ROBUSTFLOW_FN int workspace() const { return 0; }

  template <bool inverse, class Parameter, class Workspace>
  ROBUSTFLOW_FN auto transform(V x, const Parameter& p, Workspace) const {
    return math.template transform<inverse>(x, p(0, 0), p(0, 1), p(0, 2), p(0, 3));
  }
  template <class Parameter>
  ROBUSTFLOW_FN V log_slope(const Parameter&, V slope) const {
    return logarithm(slope);
  }
  template <bool inverse, class Parameter, class Workspace, class Sink>
  ROBUSTFLOW_FN V gradient(V x, const Parameter& p, Workspace, V gy, V gl, Sink&& sink) const {
    const auto g = math.template gradient<inverse>(x, p(0, 0), p(0, 1), p(0, 2), p(0, 3), gy, gl);
    sink(0, 0, g.width);
    sink(0, 1, g.height);
    sink(0, 2, g.derivative);
    sink(0, 3, g.shift);
    return g.x;
  }
};

struct ModifiedRqTransform : OneAdapter<ModifiedRqOp> {
  using Config = ModifiedRqConfig;
  static constexpr int kGroups = 1, kConstants = 0;
  static constexpr Packs kPacks{.avx512 = {4, 4}, .avx = {2, 2}, .others = {1, 1}};

  static Settings<Config> settings(DType, bool inverse, double left, double right, double min_bin,
                                   double min_derivative, bool softclip) {
    const double inverse_bound = -1 / __builtin_log(min_derivative);
    return {inverse, {left, right, min_bin, min_derivative, softclip, inverse_bound}, {4}};
  }
};

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
