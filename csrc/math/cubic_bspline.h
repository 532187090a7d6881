// The monotone cubic B-spline of Hong and Chun (arXiv:2304.04555), which arXiv:2212.04319 uses as a
// remedy besides the modified RQ spline: eight bins in a box, slope 1 at its edges, identity
// outside, and a shift. Eleven parameters per element: four knot logits, six control logits, the
// shift.
//
// There are twelve knot spacings, in the box and around it, and ten differences D of the control
// points. The middle four spacings and the middle six differences are free; all others have the
// smallest size m. Let S_j be the sum of the three spacings that D_j spans. Then the derivative is
// three times the quadratic B-spline of q_j = D_j / S_j. The value r of that B-spline at a knot is
// a weighted mean of the two q beside the knot. In a bin of width h, at the fraction t of the width
// from its left knot and with c = 1 - t,
//
//   T = dy/dx = 3 (r0 c^2 + 2 q c t + r1 t^2)
//   y = y0 + h (r0 t (3 - 3 t + t^2) + q t^2 (3 - 2 t) + r1 t^3)
//
// Every term is positive, so nothing cancels.
#pragma once

#include "elementary.h"
#include "rq_bin.h"
#include "transform.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

struct CubicBsplineConfig {
  double left, right;
  double min_bin;
};

// A bin, measured from one of its knots. At the fraction t of the width from that knot, the curve
// has risen by width * rise(t).
template <class V>
struct CubicBin {
  V width, r0, q, r1;

  ROBUSTFLOW_FN V height() const { return width * (r0 + q + r1); }
  ROBUSTFLOW_FN V rise(V t) const {
    return t * (r0 * (V(3) - t * (V(3) - t)) + t * (q * (V(3) - V(2) * t) + r1 * t));
  }
  ROBUSTFLOW_FN V slope(V t) const {
    const V c = V(1) - t;
    return V(3) * (c * (r0 * c + q * (t + t)) + r1 * t * t);
  }
  // Half the derivative of slope(t).
  ROBUSTFLOW_FN V bend(V t) const { return V(3) * ((q - r0) * (V(1) - t) + (r1 - q) * t); }
};

// The cube root of a positive normal number, with a relative error of about 2 %.
template <class V>
ROBUSTFLOW_FN V rough_cube_root(V v) {
  V mantissa, exponent;
  split(v, mantissa, exponent);
  const V f = mantissa - V(1);
  const V log2 = (exponent + f * (V(1.4427) - V(0.6) * f)) * V(1.0 / 3);
  const V shifted = log2 + V(ieee<scalar_t<V>>::round_to_integer);
  const V r = log2 - (shifted - V(ieee<scalar_t<V>>::round_to_integer));
  return power_of_two(shifted) * (V(1) + r * (V(0.6931) + V(0.2402) * r));
}

// The t at which the curve of a bin has risen by `distance`, which is at most half of its height.
//
// The first guess, in units of the height, is the smaller solution of two equations: 3 r0 t + 3 q
// t^2 = v, which approximates the curve near the knot, and r1 t^3 = v, which approximates it where
// r1 is much larger than r0 and q. Then come Halley steps. On 400,000 adversarial bins, with
// min_bin from 1e-5 to 0.1, the residual after one, two and three steps was 2e-2, 7e-7 and 7e-16 of
// the height, and the denominator stayed above 0.8 slope^2, so that no bracket is needed.
template <class V>
ROBUSTFLOW_FN V cubic_root(const CubicBin<V>& bin, V distance) {
  constexpr int kSteps = 3;
  const V one_over_height = V(1) / bin.height(), scale = bin.width * one_over_height;
  const V v = distance * one_over_height;
  const CubicBin<V> unit = {V(1), scale * bin.r0, scale * bin.q, scale * bin.r1};
  const V b = V(3) * unit.r0;
  const V quadratic = V(2) * v / (b + square_root(V(b * b + V(12) * unit.q * v)));
  V t = min(rough_cube_root(max(V(1e-36), V(v / unit.r1))), quadratic);
  unroll<kSteps>(kSteps, [&](int) ROBUSTFLOW_INLINE {
    const V residual = unit.rise(t) - v, slope = unit.slope(t);
    t = t - residual * slope / (slope * slope - residual * unit.bend(t));
  });
  return min(V(1), max(V(0), t));
}

// The softmax of N logits.
template <int N, class V, class Logit>
ROBUSTFLOW_FN void softmax(V (&share)[N], Logit&& logit) {
  V largest = logit(0), sum = V(0);
  unroll<N, 1>(N, [&](int i) ROBUSTFLOW_INLINE { largest = max(largest, logit(i)); });
  unroll<N>(N, [&](int i) ROBUSTFLOW_INLINE {
    share[i] = exp2_of_negative(V(V(kLog2E) * (logit(i) - largest)));
    sum = sum + share[i];
  });
  const V scale = V(1) / sum;
  unroll<N>(N, [&](int i) ROBUSTFLOW_INLINE { share[i] = share[i] * scale; });
}

// For each share i, the sum of the shares before it and the sum of those after it.
template <int N, class V>
struct AroundShares {
  V before[N], after[N];

  ROBUSTFLOW_FN explicit AroundShares(const V (&share)[N]) {
    before[0] = after[N - 1] = V(0);
    unroll<N, 1>(N, [&](int i) ROBUSTFLOW_INLINE {
      before[i] = before[i - 1] + share[i - 1];
      after[N - 1 - i] = after[N - i] + share[N - i];
    });
  }
};

// The next two functions add the gradient of each logit i of a softmax to `grad`, divided by
// share_i: sum_j share_j (C_i - C_j), where C_i is the gradient of the size of interval i. They
// never subtract nearly equal numbers.
//
// This one gets the differences grad_point[i] = C_i - C_(i+1): the gradient of the point between
// the intervals i and i + 1. Points after the end of `grad_point` have the gradient 0.
template <int N, int POINTS, class V>
ROBUSTFLOW_FN void add_point_gradients(V (&grad)[N], const AroundShares<N, V>& around,
                                       const V (&grad_point)[POINTS]) {
  V after = V(0), before = V(0);
  unroll<POINTS>(POINTS, [&](int j) ROBUSTFLOW_INLINE {
    const int i = POINTS - 1 - j;
    after = after + grad_point[i] * around.after[i];
    grad[i] = grad[i] + after;
  });
  unroll<N, 1>(N, [&](int i) ROBUSTFLOW_INLINE {
    if (i <= POINTS) before = before + grad_point[i - 1] * around.before[i];
    grad[i] = grad[i] - before;
  });
}
// This one gets grad_size[i] = C_i itself, which is 0 after the end of `grad_size`.
template <int N, int SIZES, class V>
ROBUSTFLOW_FN void add_size_gradients(V (&grad)[N], const AroundShares<N, V>& around,
                                      const V (&share)[N], const V (&grad_size)[SIZES]) {
  V weighted[SIZES];
  unroll<SIZES>(SIZES, [&](int i) ROBUSTFLOW_INLINE { weighted[i] = share[i] * grad_size[i]; });
  const AroundShares<SIZES, V> sums(weighted);
  const V all = sums.before[SIZES - 1] + weighted[SIZES - 1];
  unroll<N>(N, [&](int i) ROBUSTFLOW_INLINE {
    if (i < SIZES) {
      const V own = (around.before[i] + around.after[i]) * grad_size[i];
      grad[i] = grad[i] + (own - (sums.before[i] + sums.after[i]));
    } else {
      grad[i] = grad[i] - all;
    }
  });
}

template <class V>
struct CubicBspline {
  static constexpr int kKnots = 4, kControls = 6;  // numbers of logits
  static constexpr int kBins = 4;                  // in each half of the box

  V left, right;
  V smallest, free;  // the minimal size m, and the length that a softmax divides beyond it

  // One formula serves both halves of the box. It goes from the edge of the box to the middle knot.
  // An element in the upper half is mirrored: x and y change sign, and all arrays are reversed. The
  // members hold the mirrored values.
  struct Element {
    V knot_share[kKnots], control_share[kControls];
    V f[kKnots];                   // free spacings
    V q[kBins + 2];                // for this half's bins, and for one bin on either side
    mask_t<V> reached[kBins - 1];  // whether the element lies past an inner knot
    CubicBin<V> bin;               // the element's bin, measured from its outer knot
    V x0, x1, y0, y1;              // the bin's knots
    mask_t<V> upper, outside;

    ROBUSTFLOW_FN V mirrored(V v) const { return select(upper, V(0) - v, v); }

    // Selects the value of the element's bin.
    ROBUSTFLOW_FN V of_bin(V v0, V v1, V v2, V v3) const {
      return select(reached[2], v3, select(reached[1], v2, select(reached[0], v1, v0)));
    }
  };
  struct Output {
    V value, slope;  // the transformed element and T = dy/dx of the forward transform
  };

  ROBUSTFLOW_FN explicit CubicBspline(const CubicBsplineConfig& c)
      : left(c.left),
        right(c.right),
        smallest((c.right - c.left) * c.min_bin),
        free((c.right - c.left) * (1 - 8 * c.min_bin)) {}

  template <int N>
  ROBUSTFLOW_FN static void mirror(mask_t<V> upper, V (&v)[N]) {
    unroll<N / 2>(N / 2, [&](int i) ROBUSTFLOW_INLINE {
      const V other = select(upper, v[i], v[N - 1 - i]);
      v[i] = select(upper, v[N - 1 - i], v[i]);
      v[N - 1 - i] = other;
    });
  }

  // Finds the bin of an element. key: x, or y - shift for the inverse. logit(i): the knot logits,
  // then the control logits.
  template <bool inverse, class Logit>
  ROBUSTFLOW_FN Element locate(V key, const Logit& logit) const {
    Element e;
    V(&f)[kKnots] = e.f;
    V g[kControls];  // free differences of control points
    softmax(e.knot_share, [&](int i) ROBUSTFLOW_INLINE { return logit(i); });
    softmax(e.control_share, [&](int i) ROBUSTFLOW_INLINE { return logit(kKnots + i); });
    unroll<kKnots>(kKnots,
                   [&](int i) ROBUSTFLOW_INLINE { f[i] = smallest + free * e.knot_share[i]; });
    unroll<kControls>(
        kControls, [&](int i) ROBUSTFLOW_INLINE { g[i] = smallest + free * e.control_share[i]; });
    // Distances of the middle knot from both edges of the box.
    const V m = smallest, inner = f[1] + f[2];
    V beside[] = {g[2] / (f[0] + inner), g[3] / (inner + f[3])};
    const V r4 = (beside[0] * f[2] + beside[1] * f[1]) / inner;
    V x4[] = {((m + m) + f[0]) + f[1], ((m + m) + f[3]) + f[2]};
    V y4[] = {((m + g[0]) + g[1]) + (beside[0] * (f[0] + f[1]) + f[1] * r4),
              ((m + g[5]) + g[4]) + (beside[1] * (f[3] + f[2]) + f[2] * r4)};
    const V(&middle)[2] = inverse ? y4 : x4;
    e.upper = key >= from_nearer(left, middle[0], middle[1], right);
    e.outside = (key <= left) | (key >= right);
    mirror(e.upper, e.knot_share);
    mirror(e.upper, e.control_share);
    mirror(e.upper, f);
    mirror(e.upper, g);
    mirror(e.upper, beside);
    mirror(e.upper, x4);
    mirror(e.upper, y4);

    const V third = V(1.0 / 3), f01 = f[0] + f[1];
    const V q2 = g[0] / ((m + m) + f[0]), q3 = g[1] / (m + f01), q4 = beside[0];
    e.q[0] = e.q[1] = third;
    e.q[2] = q2;
    e.q[3] = q3;
    e.q[4] = q4;
    e.q[5] = beside[1];
    const V r1 = V(0.5) * (third + q2);
    const V r2 = (q2 * f[0] + q3 * m) / (m + f[0]), r3 = (q3 * f[1] + q4 * f[0]) / f01;
    V x[kBins + 1], y[kBins + 1];
    knots_of(e, x, x4, {m, m, f[0], f[1]});
    knots_of(
        e, y, y4,
        {m * (V(2.0 / 3) + r1), m * (r1 + q2 + r2), f[0] * (r2 + q3 + r3), f[1] * (r3 + q4 + r4)});
    const V own = e.mirrored(key);
    unroll<kBins, 1>(
        kBins, [&](int k) ROBUSTFLOW_INLINE { e.reached[k - 1] = own >= (inverse ? y[k] : x[k]); });
    e.bin = {e.of_bin(m, m, f[0], f[1]), e.of_bin(third, r1, r2, r3), e.of_bin(third, q2, q3, q4),
             e.of_bin(r1, r2, r3, r4)};
    e.x0 = e.of_bin(x[0], x[1], x[2], x[3]);
    e.x1 = e.of_bin(x[1], x[2], x[3], x[4]);
    e.y0 = e.of_bin(y[0], y[1], y[2], y[3]);
    e.y1 = e.of_bin(y[1], y[2], y[3], y[4]);
    return e;
  }

  // A point between two edges, computed from the nearer one, where rounding errors are smaller.
  ROBUSTFLOW_FN static V from_nearer(V edge, V before, V after, V other_edge) {
    return select(before < after, edge + before, other_edge - after);
  }

  // Computes all knots of a half from the sizes of its bins. middle: the distances of the middle
  // knot, which is the half's last one, from the near and from the far edge of the box.
  struct Sizes {
    V of_bin[kBins];
  };
  ROBUSTFLOW_FN void knots_of(const Element& e, V (&knots)[kBins + 1], const V (&middle)[2],
                              const Sizes& sizes) const {
    const V edge = select(e.upper, V(0) - right, left);
    const V other_edge = select(e.upper, V(0) - left, right);
    V after[kBins + 1], before = V(0);
    after[kBins] = middle[1];
    unroll<kBins>(kBins, [&](int i) ROBUSTFLOW_INLINE {
      after[kBins - 1 - i] = after[kBins - i] + sizes.of_bin[kBins - 1 - i];
    });
    knots[0] = edge;
    unroll<kBins>(kBins, [&](int k) ROBUSTFLOW_INLINE {
      before = before + sizes.of_bin[k];
      knots[k + 1] = from_nearer(edge, before, after[k + 1], other_edge);
    });
  }

  // An element's position in its bin, measured from the nearer knot.
  struct Point {
    mask_t<V> near_edge;  // whether the nearer knot is the bin's outer one
    CubicBin<V> bin;
    V t;
  };
  template <bool inverse>
  ROBUSTFLOW_FN Point point(const Element& e, V key) const {
    const CubicBin<V>& bin = e.bin;
    const V size = inverse ? bin.height() : bin.width;
    const auto [a, b] =
        distances(e.mirrored(key), inverse ? e.y0 : e.x0, inverse ? e.y1 : e.x1, size);
    const auto near_edge = a < b;
    const V nearer = select(near_edge, a, b);
    Point p = {near_edge, bin, V(0)};
    p.bin.r0 = select(near_edge, bin.r0, bin.r1);
    p.bin.r1 = select(near_edge, bin.r1, bin.r0);
    p.t = inverse ? cubic_root(p.bin, nearer) : V(nearer / bin.width);
    return p;
  }

  template <bool inverse, class Logit>
  ROBUSTFLOW_FN Output transform(V x, const Logit& logit, V shift) const {
    const V key = inverse ? x - shift : x;
    const Element e = locate<inverse>(key, logit);
    const Point p = point<inverse>(e, key);
    const V step = e.bin.width * (inverse ? p.t : p.bin.rise(p.t));
    const V from_edge =
        select(p.near_edge, (inverse ? e.x0 : e.y0) + step, (inverse ? e.x1 : e.y1) - step);
    const V value = select(e.outside, key, e.mirrored(from_edge));
    return {inverse ? value : value + shift, select(e.outside, V(1), p.bin.slope(p.t))};
  }

  // Derivatives of y and of l = log T at a point of a bin, from de Boor's recursion. `slope`,
  // `y_knot`, `y_control` and `l_difference` are sums of positive terms.
  struct Derivatives {
    V slope, bend;      // T, and dl/dx
    V y_knot[4];        // -dy/d(knot), for the bin's two knots and the two after them
    V l_knot[4];        // dl/d(knot); both at fixed x and control points
    V y_control[4];     // dy/d(control point), for the bin's four control points
    V l_difference[3];  // dl/d(difference of two of these)

    ROBUSTFLOW_FN Derivatives(const Element& e, V m, V t, V c) {
      const V(&f)[kKnots] = e.f;
      const V(&q)[kBins + 2] = e.q;
      const V q0 = e.of_bin(q[0], q[1], q[2], q[3]), q1 = e.bin.q;
      const V q2 = e.of_bin(q[2], q[3], q[4], q[5]);
      // Knot spacings before and after the bin, and distances of the point from the knots.
      const V before = e.of_bin(m, m, m, f[0]), after = e.of_bin(m, f[0], f[1], f[2]);
      const V width = e.bin.width, further = e.of_bin(f[0], f[1], f[2], f[3]);
      const V a = t * width, b = c * width, a_before = a + before, b_after = b + after;
      const V two0 = V(1) / (before + width), two1 = V(1) / (width + after);
      const V three0 = V(1) / (m + before + width), three1 = V(1) / (before + width + after);
      const V three2 = V(1) / (width + after + further);
      // The quadratic B-spline, T / 3 = c u + t w. b0 and a0 are the weights of q0 and q1 in the
      // mean u, b1 and a1 those of q1 and q2 in the mean w. B0, B1 and B2 are the weights of q0, q1
      // and q2 in T / 3.
      const V b0 = b * two0, a0 = a_before * two0, b1 = b_after * two1, a1 = a * two1;
      const V u = q0 * b0 + q1 * a0, w = q1 * b1 + q2 * a1, third = c * u + t * w;
      const V B0 = c * b0, B1 = c * a0 + t * b1, B2 = t * a1;
      // The cubic B-spline: each weight B is divided between the control point after its
      // difference (up) and the one before it (down).
      const V up0 = B0 * ((a_before + m) * three0), down0 = B0 * (b * three0);
      const V up1 = B1 * (a_before * three1), down1 = B1 * (b_after * three1);
      const V up2 = B2 * (a * three2), down2 = B2 * ((b_after + further) * three2);
      y_control[0] = down0;
      y_control[1] = up0 + down1;
      y_control[2] = up1 + down2;
      y_control[3] = up2;
      y_knot[0] = q2 * down2 + t * b1 * w + c * third;
      y_knot[1] = q0 * up0 + c * a0 * u + t * third;
      y_knot[2] = q1 * up1 + t * a1 * w;
      y_knot[3] = q2 * up2;
      const V one_over = V(1) / third, bend0 = (q1 - q0) * two0, bend1 = (q2 - q1) * two1;
      const V half_bend = (c * bend0 + t * bend1) * one_over;
      l_difference[0] = B0 * three0 * one_over;
      l_difference[1] = B1 * three1 * one_over;
      l_difference[2] = B2 * three2 * one_over;
      const V l2 = q2 * l_difference[2];
      l_knot[0] = l2 - (t * b1 * bend1 * one_over + c * half_bend);
      l_knot[1] = V(0) - (q0 * l_difference[0] + c * a0 * bend0 * one_over + t * half_bend);
      l_knot[2] = V(0) - (q1 * l_difference[1] + t * a1 * bend1 * one_over);
      l_knot[3] = V(0) - l2;
      slope = V(3) * third;
      bend = V(2) * half_bend;
    }
  };

  // Gradients of grad_y * y + grad_logabsdet * logabsdet, where y is the output of this direction.
  // Returns the gradient of x and calls sink(i, v) with that of parameter i.
  template <bool inverse, class Logit, class Sink>
  ROBUSTFLOW_FN V gradient(V x, const Logit& logit, V shift, V grad_y, V grad_logabsdet,
                           Sink&& sink) const {
    const V key = inverse ? x - shift : x, zero = V(0);
    const Element e = locate<inverse>(key, logit);
    const Point p = point<inverse>(e, key);
    const V other = V(1) - p.t;
    const Derivatives d(e, smallest, select(p.near_edge, p.t, other),
                        select(p.near_edge, other, p.t));
    const V grad = e.mirrored(grad_y);
    // Implicit differentiation: the gradients of the inverse are those of the forward transform,
    // with these cotangents of its y and l.
    const V grad_distance = inverse ? (grad - grad_logabsdet * d.bend) / d.slope
                                    : grad * d.slope + grad_logabsdet * d.bend;
    const V y_cotangent = inverse ? zero - grad_distance : grad;
    const V l_cotangent = inverse ? zero - grad_logabsdet : grad_logabsdet;
    const auto grad_knot = [&](int i) ROBUSTFLOW_INLINE {
      return V(l_cotangent * d.l_knot[i] - y_cotangent * d.y_knot[i]);
    };
    const auto grad_control = [&](int i)
                                  ROBUSTFLOW_INLINE { return V(y_cotangent * d.y_control[i]); };
    const auto grad_difference = [&](int i) ROBUSTFLOW_INLINE {
      return V(l_cotangent * d.l_difference[i]);
    };
    // Gradients of the knots, control points and differences that depend on the logits. `d` counts
    // them from the element's bin: for each bin between that and the edge, the same knot's index in
    // d.l_knot and d.y_knot is smaller by one. The same holds for control points and differences.
    const V knot0 = grad_knot(0), knot1 = grad_knot(1), knot2 = grad_knot(2), knot3 = grad_knot(3);
    const V grad_knots[] = {e.of_bin(knot3, knot2, knot1, knot0),
                            e.of_bin(zero, knot3, knot2, knot1),
                            e.of_bin(zero, zero, knot3, knot2)};
    const V control0 = grad_control(0), control1 = grad_control(1);
    const V control2 = grad_control(2), control3 = grad_control(3);
    const V grad_controls[] = {e.of_bin(control3, control2, control1, control0),
                               e.of_bin(zero, control3, control2, control1),
                               e.of_bin(zero, zero, control3, control2),
                               e.of_bin(zero, zero, zero, control3)};
    const V size0 = grad_difference(0), size1 = grad_difference(1), size2 = grad_difference(2);
    const V grad_sizes[] = {e.of_bin(size2, size1, size0, zero),
                            e.of_bin(zero, size2, size1, size0), e.of_bin(zero, zero, size2, size1),
                            e.of_bin(zero, zero, zero, size2)};
    V knots[kKnots] = {zero, zero, zero, zero};
    V controls[kControls] = {zero, zero, zero, zero, zero, zero};
    add_point_gradients(knots, AroundShares<kKnots, V>(e.knot_share), grad_knots);
    const AroundShares<kControls, V> around(e.control_share);
    add_point_gradients(controls, around, grad_controls);
    add_size_gradients(controls, around, e.control_share, grad_sizes);
    const auto write_gradients = [&]<int N>(int first, V(&logit_grad)[N],
                                            const V(&share)[N]) ROBUSTFLOW_INLINE {
      unroll<N>(N,
                [&](int i) ROBUSTFLOW_INLINE { logit_grad[i] = free * share[i] * logit_grad[i]; });
      mirror(e.upper, logit_grad);
      unroll<N>(N, [&](int i) ROBUSTFLOW_INLINE {
        sink(first + i, select(e.outside, zero, logit_grad[i]));
      });
    };
    write_gradients(0, knots, e.knot_share);
    write_gradients(kKnots, controls, e.control_share);
    const V grad_x = select(e.outside, grad_y, e.mirrored(grad_distance));
    sink(kKnots + kControls, inverse ? zero - grad_x : grad_y);
    return grad_x;
  }
};

template <class V>
struct CubicBsplineOp {
  using Lane = V;
  using Config = CubicBsplineConfig;
  static constexpr int kGroups = 1, kParameters = 11, kMaxWorkspace = 0;
  static constexpr int kMinBlocksPerMultiprocessor[] = {is_float32<V> ? 8 : 4,
                                                        is_float32<V> ? 4 : 2};
  static constexpr int kShift = 10;

  CubicBspline<V> math;

  ROBUSTFLOW_FN explicit CubicBsplineOp(const Config& config, const double* = nullptr)
      : math(config) {}

  ROBUSTFLOW_FN int column(int) const { return 0; }
  ROBUSTFLOW_FN int workspace() const { return 0; }

  template <bool inverse, class Parameter, class Workspace>
  ROBUSTFLOW_FN auto transform(V x, const Parameter& p, Workspace) const {
    return math.template transform<inverse>(
        x, [&](int i) ROBUSTFLOW_INLINE { return V(p(0, i)); }, p(0, kShift));
  }
  template <class Parameter>
  ROBUSTFLOW_FN V log_slope(const Parameter&, V slope) const {
    return logarithm(slope);
  }
  template <bool inverse, class Parameter, class Workspace, class Sink>
  ROBUSTFLOW_FN V gradient(V x, const Parameter& p, Workspace, V gy, V gl, Sink&& sink) const {
    return math.template gradient<inverse>(
        x, [&](int i) ROBUSTFLOW_INLINE { return V(p(0, i)); }, p(0, kShift), gy, gl,
        [&](int i, V v) ROBUSTFLOW_INLINE { sink(0, i, v); });
  }
};

struct CubicBsplineTransform : OneAdapter<CubicBsplineOp> {
  using Config = CubicBsplineConfig;
  static constexpr int kGroups = 1, kConstants = 0;
  // 1e9 elements/s with packs of 1 and of 2 registers (Zen 5, AVX-512, one core, 2^20 elements):
  // forward 0.33 and 0.34, inverse 0.15 and 0.21; gradient of the forward transform 0.21 and 0.19,
  // of the inverse 0.10 and 0.13.
  static constexpr Packs kPacks{.avx512 = {2, 2}, .avx = {1, 1}, .others = {1, 1}};

  static Settings<Config> settings(DType, bool inverse, double left, double right, double min_bin) {
    return {inverse, {left, right, min_bin}, {11}};
  }
};

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
