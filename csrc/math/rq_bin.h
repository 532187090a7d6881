// One bin of a rational-quadratic spline: forward, inverse, and the gradients of both.
//
// Durkan et al. 2019 (arXiv:1906.04032), rewritten in homogeneous coordinates so that every
// quantity is a sum of non-negative terms. With a and b the distances to the left and right knot:
//
//   v = a H + D0 b     u = b H + D1 a     P = a v     R = b u     D = derivative * W
//   y = y_k + g P  (or y_{k+1} - g R, from the nearer knot),  g = H / (P + R)
//   T = dy/dx = (g W)(g N),  N = a u + b v
//
// The discriminant of the inverse is r^2 + 4 p q: it cannot be negative.
#pragma once

#include "lane.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// A bin's width, height, and derivatives at the left and the right knot.
template <class V>
struct RqShape {
  V width, height, d0, d1;
};

// A bin with its knots, x0 < x1 and y0 < y1. The shape is not computed from the knots, because
// their difference would cancel.
template <class V>
struct RqBin {
  V x0, x1, y0, y1;
  RqShape<V> shape;
};

// Distances from both ends of an interval, which sum to its size: the smaller of `left` and
// `right`, and size minus that. (The ends are rounded, so that left + right may differ from the
// size. If the interval is shorter than the rounding error, even the smaller one may exceed the
// size.)
template <class V>
struct Distances {
  V left, right;
};
template <class V>
ROBUSTFLOW_FN Distances<V> distances(V left, V right, V size) {
  const auto near_left = left < right;
  const V nearer = min(size, select(near_left, left, right)), other = size - nearer;
  return {select(near_left, nearer, other), select(near_left, other, nearer)};
}
// The same for a point v of [v0, v1].
template <class V>
ROBUSTFLOW_FN Distances<V> distances(V v, V v0, V v1, V size) {
  return distances(max(V(0), v - v0), max(V(0), v1 - v), size);
}

// T = (g W)(g N): in this order no factor overflows or underflows.
template <class V>
ROBUSTFLOW_FN V rq_slope(V g, V width, V N) {
  return (g * width) * (g * N);
}

// v and u, which P, R and N contain.
template <class V>
struct RqFactors {
  V v, u;

  ROBUSTFLOW_FN RqFactors(const RqShape<V>& s, V a, V b)
      : v(a * s.height + s.d0 * s.width * b), u(b * s.height + s.d1 * s.width * a) {}
};

// A point of the curve: its distances from the left and the right knot along the axis of the
// result, whether the left knot is the nearer one, and the slope dy/dx.
template <class V>
struct RqPoint {
  V left, right;
  mask_t<V> near_left;
  V slope;
};

// From distances a and b along x to those along y.
template <class V>
ROBUSTFLOW_FN RqPoint<V> rq_forward(const RqShape<V>& s, V a, V b) {
  const RqFactors<V> f(s, a, b);
  const V P = a * f.v, R = b * f.u, N = a * f.u + b * f.v;
  const V g = s.height / (P + R);
  return {g * P, g * R, P < R, rq_slope(g, s.width, N)};
}

// From distances p and q along y to those along x.
template <class V>
ROBUSTFLOW_FN RqPoint<V> rq_inverse(const RqShape<V>& s, V p, V q) {
  const V r = s.width * (s.d0 * q - s.d1 * p) / s.height;
  const V size = absolute(r);
  const V huge =
      V(is_float32<V> ? 1e18 : 1e150);  // beyond it r^2 overflows and 4 p q is negligible
  const V S = select(size > huge, size, square_root(r * r + V(4) * p * q));
  const V g = size + S;
  const auto rising = r >= V(0);
  const V twice = V(2) * select(rising, p, q);
  const V share = V(1) / (twice + g);
  const V small = twice * share, large = g * share;
  const V t = select(rising, small, large), c = select(rising, large, small);
  const V a = t * s.width, b = c * s.width;
  const RqFactors<V> f(s, a, b);
  const V slope_g = s.height / (a * f.v + b * f.u), N = a * f.u + b * f.v;
  return {a, b, t < c, rq_slope(slope_g, s.width, N)};
}

// x to y or y to x in a bin with knots. The result is the nearer knot plus or minus the distance.
template <class V>
struct RqValue {
  V value, slope;
};
template <bool inverse, class V>
ROBUSTFLOW_FN RqValue<V> rq_transform(const RqBin<V>& bin, V key) {
  if constexpr (inverse) {
    const auto [p, q] = distances(key, bin.y0, bin.y1, bin.shape.height);
    const RqPoint<V> at = rq_inverse(bin.shape, p, q);
    return {select(at.near_left, bin.x0 + at.left, bin.x1 - at.right), at.slope};
  } else {
    const auto [a, b] = distances(key, bin.x0, bin.x1, bin.shape.width);
    const RqPoint<V> at = rq_forward(bin.shape, a, b);
    return {select(at.near_left, bin.y0 + at.left, bin.y1 - at.right), at.slope};
  }
}

// Gradients of x, of the knots, and of the logarithms of the derivatives. x_knots = x0 + x1 is the
// gradient of a shift of both knots, and y_knots = y0 + y1. Both have formulas of their own,
// because the sums could cancel.
template <class V>
struct RqGradient {
  V x, x0, x1, y0, y1, log_d0, log_d1, x_knots, y_knots;
};

// The terms of the partial derivatives of y and of l = log T at a point. h, u and n are the terms
// of the sums Q and N, divided by the sum, so that they are at most 1 and nothing overflows. With
// D0 = d0 W, D1 = d1 W and Q = P + R:
//
//   h0 = a^2 H / Q     h1 = b^2 H / Q     u0 = D0 a b / Q    u1 = D1 a b / Q
//   n0 = D0 b^2 / N    n1 = D1 a^2 / N    p = h0 + u0        r = h1 + u1
//   E = W/2 dl/dW      A = dl/da          B = dl/db          g = H / Q           slope = T
//
// docs/mathematics.md derives them.
template <class V>
struct RqShares {
  V a, b, width, height, g, slope, h0, h1, u0, u1, n0, n1, E, A, B, p, r;

  ROBUSTFLOW_FN RqShares(const RqShape<V>& s, V a_, V b_)
      : a(a_), b(b_), width(s.width), height(s.height) {
    const V D0 = s.d0 * width, D1 = s.d1 * width;
    const V aH = a * height, bH = b * height, D0b = D0 * b, D1a = D1 * a;
    const V v = aH + D0b, u = bH + D1a, N = a * u + b * v;
    const V one_over_Q = V(1) / (a * v + b * u), one_over_N = V(1) / N;
    g = height * one_over_Q;
    slope = rq_slope(g, width, N);
    const V aQ = a * one_over_Q, bQ = b * one_over_Q;
    h0 = aQ * aH;
    h1 = bQ * bH;
    u0 = aQ * D0b;
    u1 = bQ * D1a;
    n0 = (b * one_over_N) * D0b;
    n1 = (a * one_over_N) * D1a;
    E = h0 + h1 - (b * one_over_N) * aH;
    A = V(2) * (u * one_over_N - (V(2) * aH + (D0 + D1) * b) * one_over_Q);
    B = V(2) * (v * one_over_N - (V(2) * bH + (D0 + D1) * a) * one_over_Q);
    p = h0 + u0;
    r = h1 + u1;
  }

  // The gradients of grad_y * y + grad_l * l.
  ROBUSTFLOW_FN RqGradient<V> apply(V grad_y, V grad_l) const {
    const V one_over_W = V(1) / width;
    const V t = a * one_over_W, c = b * one_over_W;
    const V two_E_W = V(2) * E * one_over_W, two_g_H = V(2) * g * height;
    const V l_y = grad_l * (V(2) * (V(1) - E) / height);
    RqGradient<V> out;
    out.x = grad_y * slope + grad_l * (A - B);
    out.x0 = V(0) - (grad_y * (c * (slope * c + two_g_H * b * p)) + grad_l * (A + two_E_W));
    out.x1 = grad_l * (B + two_E_W) - grad_y * (t * (slope * t + two_g_H * a * r));
    out.y0 = grad_y * (r * r + h0 * h1 + u0 * u1 + V(2) * h1 * u0) - l_y;
    out.y1 = grad_y * (p * p + h0 * h1 + u0 * u1 + V(2) * h0 * u1) + l_y;
    out.log_d0 = grad_y * (height * u0 * r) + grad_l * (n0 - V(2) * u0);
    out.log_d1 = grad_l * (n1 - V(2) * u1) - grad_y * (height * u1 * p);
    out.x_knots = V(0) - out.x;  // shifting both knots and x by the same amount changes nothing
    out.y_knots = grad_y;
    return out;
  }
};

// Gradients of the forward transform at distances a and b, from the cotangents of y and of
// logabsdet = l.
template <class V>
ROBUSTFLOW_FN RqGradient<V> rq_forward_gradient(const RqShape<V>& s, V a, V b, V grad_y,
                                                V grad_logabsdet) {
  return RqShares<V>(s, a, b).apply(grad_y, grad_logabsdet);
}

// Gradients of the inverse at distances p and q, by implicit differentiation, from the cotangents
// of x and of logabsdet = -l. In the result, `x` is the gradient of y. The gradients of the x knots
// are written out: in the sum of their terms from y and from l, large parts would cancel.
template <class V>
ROBUSTFLOW_FN RqGradient<V> rq_inverse_gradient(const RqShape<V>& shape, V p, V q, V grad_x,
                                                V grad_logabsdet) {
  const RqPoint<V> point = rq_inverse(shape, p, q);
  const V a = point.left, b = point.right;
  const RqShares<V> s(shape, a, b);
  const V one_over_T = V(1) / s.slope;
  const V lambda = (grad_x - grad_logabsdet * (s.A - s.B)) * one_over_T;
  RqGradient<V> out = s.apply(V(0) - lambda, V(0) - grad_logabsdet);
  // dx/dx0 and dx/dx1 at fixed y; they sum to one.
  const V one_over_W = V(1) / shape.width;
  const V t = a * one_over_W, c = b * one_over_W, two_g_H = V(2) * s.g * shape.height * one_over_T;
  const V dx_dx0 = c * (c + two_g_H * b * s.p), dx_dx1 = t * (t + two_g_H * a * s.r);
  const V through_l = grad_logabsdet * (s.A * dx_dx1 + s.B * dx_dx0 + V(2) * s.E * one_over_W);
  out.x = lambda;
  out.x0 = grad_x * dx_dx0 + through_l;
  out.x1 = grad_x * dx_dx1 - through_l;
  out.x_knots = grad_x;
  return out;
}

// Gradients of either direction in a bin with knots.
template <bool inverse, class V>
ROBUSTFLOW_FN RqGradient<V> rq_gradient(const RqBin<V>& bin, V key, V grad_value,
                                        V grad_logabsdet) {
  if constexpr (inverse) {
    const auto [p, q] = distances(key, bin.y0, bin.y1, bin.shape.height);
    return rq_inverse_gradient(bin.shape, p, q, grad_value, grad_logabsdet);
  } else {
    const auto [a, b] = distances(key, bin.x0, bin.x1, bin.shape.width);
    return rq_forward_gradient(bin.shape, a, b, grad_value, grad_logabsdet);
  }
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
