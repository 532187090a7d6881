// The modified rational-quadratic spline of Hong, Park and Chun (arXiv:2212.04319): two bins in a
// box, slope 1 at its edges, identity outside, and a shift. Four parameters an element: width,
// height, derivative and shift logits.
#pragma once

#include "elementary.h"
#include "rq_bin.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

struct ModifiedRqConfig {
  double left, right;
  double min_bin, min_derivative;
  bool softclip;  // derivative exp(d / (1 + |d| / c)), c = -log(min_derivative), in place of exp
  double inverse_bound;  // 1 / c
};

template <class V>
struct ModifiedRq {
  V left, right, length, min_bin, free_bins, min_derivative, free_derivative, inverse_bound;
  bool softclip;

  // The bin of an element, and what its gradients need of the parameters.
  struct Element {
    Sigmoid<V> width, height;
    V derivative, exponential;  // d' and, for "exp", the exponential in it
    RqBin<V> bin;
    mask_t<V> upper;    // the element lies in the second bin
    mask_t<V> outside;  // it lies outside the box
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
        length(c.right - c.left),
        min_bin(c.min_bin),
        free_bins(1 - 2 * c.min_bin),
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
    const V W0 = length * (min_bin + free_bins * e.width.value);
    const V W1 = length * (min_bin + free_bins * e.width.complement);
    const V H0 = length * (min_bin + free_bins * e.height.value);
    const V H1 = length * (min_bin + free_bins * e.height.complement);
    // From the nearer end, whose rounding is the smaller.
    const V x_mid = select(W0 < W1, left + W0, right - W1);
    const V y_mid = select(H0 < H1, left + H0, right - H1);
    e.upper = key >= (inverse ? y_mid : x_mid);
    e.outside = (key <= left) | (key >= right);
    e.bin = {select(e.upper, x_mid, left),
             select(e.upper, right, x_mid),
             select(e.upper, y_mid, left),
             select(e.upper, right, y_mid),
             select(e.upper, W1, W0),
             select(e.upper, H1, H0),
             select(e.upper, e.derivative, V(1)),
             select(e.upper, V(1), e.derivative)};
    return e;
  }

  template <bool inverse>
  ROBUSTFLOW_FN Output transform(V x, V w, V h, V d, V shift) const {
    const V key = inverse ? x - shift : x;
    const Element e = locate<inverse>(key, w, h, d);
    const RqPoint<V> point = inverse ? rq_inverse(e.bin, key) : rq_forward(e.bin, key);
    const V value = select(e.outside, key, point.value);
    return {inverse ? value : value + shift, select(e.outside, V(1), point.slope)};
  }

  // Gradients of grad_y * y + grad_logabsdet * logabsdet, where y is the output of either direction.
  template <bool inverse>
  ROBUSTFLOW_FN Gradient gradient(V x, V w, V h, V d, V shift, V grad_y, V grad_logabsdet) const {
    const V key = inverse ? x - shift : x;
    const Element e = locate<inverse>(key, w, h, d);
    const RqGradient<V> g = inverse ? rq_inverse_gradient(e.bin, key, grad_y, grad_logabsdet)
                                    : rq_forward_gradient(e.bin, key, grad_y, grad_logabsdet);
    // The inner knot is the right one of the first bin and the left one of the second.
    const V size = length * free_bins;
    const V by_width = select(e.upper, g.x0, g.x1) * (size * e.width.slope(w));
    const V by_height = select(e.upper, g.y0, g.y1) * (size * e.height.slope(h));
    const V log_slope = softclip ? soft_clip(d, inverse_bound).slope
                                 : free_derivative * e.exponential / e.derivative * saturation(d);
    const V by_derivative = select(e.upper, g.log_d0, g.log_d1) * log_slope;
    const V by_x = select(e.outside, grad_y, g.x);
    const V zero = V(0);
    return {by_x, select(e.outside, zero, by_width), select(e.outside, zero, by_height),
            select(e.outside, zero, by_derivative), inverse ? zero - by_x : grad_y};
  }
};

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
