// The rational-quadratic spline with K bins: Durkan et al. 2019 (arXiv:1906.04032).
//
// Parameters are K width logits, K height logits and D derivative logits. The formulas read them as
// source(group, k), and so do not depend on the layout. The workspace, rq_workspace() lanes, holds
// the unnormalised sizes of the bins.
#pragma once

#include <type_traits>

#include "elementary.h"
#include "half.h"
#include "rq_bin.h"
#include "transform.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// The numbers are those of the operators' schema (robustflow/_transforms.py).
enum class Tails : int { none = 0, linear = 1, circular = 2 };
enum class Parametrization : int {
  softmax = 0,   // softmax sizes with a minimum, softplus derivatives: nflows, normflows
  softclip = 1,  // soft-clipped logits, exp derivatives: zuko
  knots = 2,     // the sizes and derivatives themselves, no logits
};

struct RqSplineConfig {
  int num_bins;
  Tails tails;
  Parametrization parametrization;
  double min_bin_width, min_bin_height, min_derivative;
  double logit_scale;
  double inverse_bound;  // 1 / -log(min_derivative): the inverse of the soft clipping's bound
  Format x_format;       // of x and y in memory
};

// The size of the kernels' arrays. robustflow/_transforms.py has the same number.
inline constexpr int kMaxBins = 256;

ROBUSTFLOW_FN int rq_num_derivatives(int num_bins, Tails tails) {
  return num_bins + (tails == Tails::linear ? -1 : tails == Tails::none ? 1 : 0);
}

// The lanes of an element's workspace: the sizes of the bins along both axes.
ROBUSTFLOW_FN constexpr int rq_workspace(int num_bins) { return 2 * num_bins; }

template <class V>
struct Box {
  V left, right, bottom, top;
};

// The groups of an element's parameters. The box is a group only if each element has its own.
enum RqGroup : int { kWidths, kHeights, kDerivatives, kBox };

// BINS is the number of bins if it is known at compile time (has_explicit_sizes() is then false),
// else 0. Workspace is a pointer type with [] and +; it may be strided.
//
// Knots are measured from the nearer edge of the box, where their rounding errors are smaller. One
// formula serves both halves: for an element beyond the middle knot, coordinates change sign and
// bins are counted from the right. In its half, knot 0 is the edge of the box, and bin k lies
// between its outer knot k and its inner knot k + 1.
template <class V, int BINS = 0, class Workspace = V*>
struct RqSpline {
  using Mask = mask_t<V>;

  int num_bins;
  Tails tails;
  Parametrization parametrization;
  V min_bin_width, min_bin_height, min_derivative, logit_scale, inverse_bound;
  Format x_format;

  struct Output {
    V value, slope;  // the transformed element and dy/dx of the forward transform
  };

  ROBUSTFLOW_FN explicit RqSpline(const RqSplineConfig& c)
      : num_bins(c.num_bins),
        tails(c.tails),
        parametrization(c.parametrization),
        min_bin_width(c.min_bin_width),
        min_bin_height(c.min_bin_height),
        min_derivative(c.min_derivative),
        logit_scale(c.logit_scale),
        inverse_bound(c.inverse_bound),
        x_format(c.x_format) {}

  ROBUSTFLOW_FN int bins() const { return BINS > 0 ? BINS : num_bins; }
  // Whether the parameters are sizes, not logits. Such sizes may not sum exactly to the size of the
  // box. So all knots are measured from its start, and the last knot is its end.
  ROBUSTFLOW_FN bool has_explicit_sizes() const {
    return BINS == 0 && parametrization == Parametrization::knots;
  }
  // The number of bins left of the middle knot, and of bins in the larger half. With explicit sizes
  // there is only one half.
  ROBUSTFLOW_FN int left_bins() const { return has_explicit_sizes() ? bins() : bins() / 2; }
  ROBUSTFLOW_FN int half_bins() const {
    return has_explicit_sizes() ? bins() : bins() - bins() / 2;
  }
  // Calls f(1), ... f(half_bins() - 1).
  template <class F>
  ROBUSTFLOW_FN void for_inner_bins(F&& f) const {
    unroll<(BINS + 1) / 2, 1>(half_bins(), f);
  }

  // Bin k has the size step + slope * size[k].
  struct Axis {
    V start, end, step, slope;
    V left_sum, right_sum;  // sums of size[k], left and right of the middle knot
    V middle;               // the coordinate of the middle knot
    Workspace size;
  };

  // Computes the sizes along an axis from their logits.
  template <class Source>
  ROBUSTFLOW_FN Axis axis(const Source& source, RqGroup group, V start, V end, V min_bin,
                          Workspace size) const {
    const auto logit = [&](int k) ROBUSTFLOW_INLINE { return source(group, k); };
    const auto set_sizes = [&](auto&& size_of) ROBUSTFLOW_INLINE {
      unroll<BINS>(bins(), [&](int k) ROBUSTFLOW_INLINE { size[k] = size_of(logit(k)); });
    };
    Axis a{start, end, V(0), V(1), V(0), V(0), end, size};
    const V length = end - start;
    V total = length;  // what slope * (left_sum + right_sum) must be
    if (has_explicit_sizes()) {
      set_sizes([](V v) ROBUSTFLOW_INLINE { return v; });
    } else if (parametrization == Parametrization::softclip) {
      set_sizes([&](V v) ROBUSTFLOW_INLINE {
        return exp2_within_limit(V(V(kLog2E) * clipped(v).value));
      });
    } else {
      V largest = logit(0);
      unroll<BINS, 1>(bins(), [&](int k) ROBUSTFLOW_INLINE { largest = max(largest, logit(k)); });
      const V scale = V(kLog2E) * logit_scale;
      set_sizes([&](V v) ROBUSTFLOW_INLINE { return exp2_of_negative(V(scale * (v - largest))); });
      a.step = length * min_bin;
      total = length * (V(1) - V(bins()) * min_bin);
    }
    a.left_sum = sum<BINS / 2>(size, left_bins());
    a.right_sum = sum<BINS - BINS / 2>(size + left_bins(), bins() - left_bins());
    if (!has_explicit_sizes()) {
      a.slope = total / (a.left_sum + a.right_sum);
      a.middle = a.slope * a.left_sum + (start + V(left_bins()) * a.step);
    }
    return a;
  }

  // Two accumulators: half the latency, and smaller rounding errors.
  template <int COUNT>
  ROBUSTFLOW_FN static V sum(Workspace size, int count) {
    V even = V(0), odd = V(0);
    unroll<COUNT / 2>(count / 2, [&](int i) ROBUSTFLOW_INLINE {
      even = even + size[2 * i];
      odd = odd + size[2 * i + 1];
    });
    if (count % 2 == 1) even = even + size[count - 1];
    return even + odd;
  }

  // The soft-clipped logit of a size, within +-half the bound. Its slope is the derivative with
  // respect to logit_scale * logit.
  ROBUSTFLOW_FN SoftClip<V> clipped(V logit) const {
    return soft_clip(V(logit_scale * logit), V(V(2) * inverse_bound));
  }

  // The logit of the derivative at a knot. With linear tails the edges have no logit, and the value
  // is not used.
  template <class Source>
  ROBUSTFLOW_FN V derivative_logit(const Source& source, int knot) const {
    if (tails == Tails::linear) {
      return knot == 0 || knot == bins() ? V(1) : source(kDerivatives, knot - 1);
    }
    return source(kDerivatives, tails == Tails::circular && knot == bins() ? 0 : knot);
  }

  struct Derivative {
    V value, log_slope;  // d, and d log d / d logit
  };
  ROBUSTFLOW_FN Derivative derivative(V logit) const {
    Derivative d;
    if (parametrization == Parametrization::softmax) {
      const Softplus<V> s = softplus(logit);
      d.value = min_derivative + s.value;
      d.log_slope = s.slope / d.value;
    } else if (parametrization == Parametrization::softclip) {
      const SoftClip<V> c = soft_clip(logit, inverse_bound);
      d.value = exponential(c.value);
      d.log_slope = c.slope;
    } else {
      d.value = logit;
      d.log_slope = V(1) / logit;
    }
    return d;
  }

  // Where an element lies in its half of the box.
  struct Location {
    Mask mirrored, last;  // it is in the right half; its bin is the last before the middle knot
    V key, index;         // its coordinate, negated if mirrored, and the index of its bin
  };
  ROBUSTFLOW_FN static V mirror(Mask mirrored, V v) { return select(mirrored, V(0) - v, v); }

  // An element's bin along one axis.
  struct Bin {
    V outer, inner, size;  // its knots and its size
    // Unnormalised sizes: the sum of the bins between the edge and this one, this bin, and the sum
    // of all others.
    V sum_outer, own, sum_inner;
  };

  // The unnormalised size of bin k of the element's half, counted from the edge.
  ROBUSTFLOW_FN V size_at(const Axis& axis, Mask mirrored, int k) const {
    if (has_explicit_sizes()) return axis.size[k];
    return select(mirrored, axis.size[bins() - 1 - k], axis.size[k]);
  }
  ROBUSTFLOW_FN V edge(const Axis& axis, Mask mirrored) const {
    return select(mirrored, V(0) - axis.end, axis.start);
  }

  // Finds the bin of a key (x, or y for the inverse). NaN gets bin 0.
  ROBUSTFLOW_FN Location find_bin(const Axis& axis, V key) const {
    Location p;
    p.mirrored = key >= axis.middle;
    if (has_explicit_sizes()) p.mirrored = axis.start > axis.start;
    p.key = mirror(p.mirrored, key);
    p.index = V(0);
    const V start = edge(axis, p.mirrored);
    V before = V(0);
    for_inner_bins([&](int k) ROBUSTFLOW_INLINE {
      before = before + size_at(axis, p.mirrored, k - 1);
      V knot = axis.slope * before + (start + V(k) * axis.step);
      // Of an odd number of bins, the middle one belongs to the right half.
      if (k == left_bins()) knot = select(p.mirrored, knot, V(__builtin_inf()));
      p.index = select(p.key >= knot, V(k), p.index);
    });
    V last = V(left_bins() - 1);
    if (half_bins() != left_bins()) last = select(p.mirrored, V(half_bins() - 1), last);
    p.last = p.index >= last;
    return p;
  }

  ROBUSTFLOW_FN Bin bin(const Axis& axis, const Location& p) const {
    V before = V(0), own = size_at(axis, p.mirrored, 0);
    Bin b{V(0), V(0), V(0), V(0), own, select(p.mirrored, axis.left_sum, axis.right_sum)};
    for_inner_bins([&](int k) ROBUSTFLOW_INLINE {
      before = before + size_at(axis, p.mirrored, k - 1);
      const V size = size_at(axis, p.mirrored, k);
      const auto passed = p.index >= V(k);
      b.sum_outer = select(passed, before, b.sum_outer);
      b.own = select(passed, size, b.own);
      V inner = select(passed, V(0), size);
      if (k == left_bins()) inner = select(p.mirrored, inner, V(0));
      b.sum_inner = b.sum_inner + inner;
    });
    const V start = edge(axis, p.mirrored);
    b.outer = axis.slope * b.sum_outer + (start + p.index * axis.step);
    b.inner = axis.slope * V(b.sum_outer + b.own) + (start + (p.index + V(1)) * axis.step);
    b.inner = select(p.last, mirror(p.mirrored, axis.middle), b.inner);
    b.size = axis.step + axis.slope * b.own;
    if (has_explicit_sizes()) b.size = select(p.last, b.inner - b.outer, b.size);
    return b;
  }

  // Logits of the derivatives at a bin's outer and inner knot.
  struct KnotLogits {
    V outer, inner;
  };
  template <class Source>
  ROBUSTFLOW_FN KnotLogits knot_logits(const Source& source, const Location& p) const {
    const auto at = [&](int knot) ROBUSTFLOW_INLINE {
      const V logit = derivative_logit(source, knot);
      if (has_explicit_sizes()) return logit;
      return select(p.mirrored, derivative_logit(source, bins() - knot), logit);
    };
    KnotLogits e{at(0), at(1)};
    for_inner_bins([&](int k) ROBUSTFLOW_INLINE {
      const auto passed = p.index >= V(k);
      e.outer = select(passed, at(k), e.outer);
      e.inner = select(passed, at(k + 1), e.inner);
    });
    return e;
  }

  struct Element {
    Location location;
    Bin x, y;
    Derivative outer, inner;
    Mask outside;

    ROBUSTFLOW_FN RqBin<V> bin() const {
      return {x.outer, x.inner, y.outer, y.inner, {x.size, y.size, outer.value, inner.value}};
    }
  };

  // For NaN this is false, so that the spline's result, NaN, is used.
  ROBUSTFLOW_FN Mask outside(V key, V lower, V upper) const {
    if (tails == Tails::linear) return (key <= lower) | (key >= upper);
    // The edges are inside. So are the edges rounded to x's dtype, which may lie further out.
    if (is_narrower<V>(x_format)) {
      lower = min(lower, as_stored(lower));
      upper = max(upper, as_stored(upper));
    }
    return (key < lower) | (key > upper);
  }
  ROBUSTFLOW_FN V as_stored(V edge) const {
    // A float64 is converted to a 16-bit type by way of float32.
    if constexpr (!is_float32<V>) edge = rounded_to(edge, kFloat32);
    return rounded_to(edge, x_format);
  }

  struct Axes {
    Axis x, y;
  };

  // One axis after the other, so that the sizes of only one need registers. The key's axis comes
  // first, because it determines the bin.
  template <bool inverse, class Source>
  ROBUSTFLOW_FN Element locate(V key, const Box<V>& box, const Source& source, Workspace workspace,
                               Axes& axes) const {
    Element e;
    const auto locate_x = [&]() ROBUSTFLOW_INLINE {
      axes.x = axis(source, kWidths, box.left, box.right, min_bin_width, workspace);
      if constexpr (!inverse) e.location = find_bin(axes.x, key);
      e.x = bin(axes.x, e.location);
    };
    const auto locate_y = [&]() ROBUSTFLOW_INLINE {
      axes.y = axis(source, kHeights, box.bottom, box.top, min_bin_height, workspace + bins());
      if constexpr (inverse) e.location = find_bin(axes.y, key);
      e.y = bin(axes.y, e.location);
    };
    if constexpr (inverse) {
      locate_y();
      locate_x();
      e.outside = outside(key, box.bottom, box.top);
    } else {
      locate_x();
      locate_y();
      e.outside = outside(key, box.left, box.right);
    }
    const KnotLogits logits = knot_logits(source, e.location);
    e.outer = derivative(logits.outer);
    e.inner = derivative(logits.inner);
    if (tails == Tails::linear) {
      e.outer.value = select(e.location.index >= V(1), e.outer.value, V(1));
      if (has_explicit_sizes()) e.inner.value = select(e.location.last, V(1), e.inner.value);
      if (bins() == 1) e.inner.value = V(1);
    }
    return e;
  }

  // The result outside the box.
  ROBUSTFLOW_FN Output tails_of(V key) const {
    const V nan = V(__builtin_nan(""));
    return tails == Tails::none ? Output{nan, nan} : Output{key, V(1)};
  }

  template <bool inverse, class Source>
  ROBUSTFLOW_FN Output transform(V key, const Box<V>& box, const Source& source,
                                 Workspace workspace) const {
    Axes axes;
    const Element e = locate<inverse>(key, box, source, workspace, axes);
    const Output tail = tails_of(key);
    const RqValue<V> point = rq_transform<inverse>(e.bin(), e.location.key);
    V value = mirror(e.location.mirrored, point.value);
    if (tails != Tails::linear) {  // an inner knot may be rounded to outside the box
      value = max(inverse ? box.left : box.bottom, min(inverse ? box.right : box.top, value));
    }
    return {select(e.outside, tail.value, value), select(e.outside, tail.slope, point.slope)};
  }

  // Gradients of grad_y * y + grad_logabsdet * logabsdet, where y is the output of this direction.
  // Returns the gradient of the input and calls sink(group, k, v) with those of the parameters.
  template <bool inverse, class Source, class Sink>
  ROBUSTFLOW_FN V gradient(V key, const Box<V>& box, const Source& source, Workspace workspace,
                           V grad_y, V grad_logabsdet, const Sink& sink) const {
    Axes axes;
    const Element e = locate<inverse>(key, box, source, workspace, axes);
    const RqGradient<V> g = rq_gradient<inverse>(
        e.bin(), e.location.key, mirror(e.location.mirrored, grad_y), grad_logabsdet);
    size_gradients(axes.x, e, e.x, {g.x0, g.x1, g.x_knots}, kWidths, source, sink);
    size_gradients(axes.y, e, e.y, {g.y0, g.y1, g.y_knots}, kHeights, source, sink);
    derivative_gradients(e, V(g.log_d0 * e.outer.log_slope), V(g.log_d1 * e.inner.log_slope), sink);
    return select(e.outside, tails == Tails::none ? V(0) : grad_y,
                  mirror(e.location.mirrored, g.x));
  }

  // The gradients of a bin's outer knot, of its inner knot, and of a shift of both.
  struct KnotGradients {
    V outer, inner, both;
  };

  // The gradient of size logit j is slope * size_j * (C_j - mean). C_j is the gradient with respect
  // to the size of bin j. A larger bin j moves both knots of the element's bin if it lies nearer to
  // the edge, the inner knot if it is that bin, else neither. The mean of C is weighted by size.
  // C_j - mean is written out for each case, because computing the difference would cancel.
  template <class Source, class Sink>
  ROBUSTFLOW_FN void size_gradients(const Axis& axis, const Element& e, const Bin& bin,
                                    const KnotGradients& grad, RqGroup group, const Source& source,
                                    const Sink& sink) const {
    const V zero = V(0);
    const auto mirrored = e.location.mirrored;
    V outer, own, inner;  // slope * (C_j - mean) in these three cases
    if (has_explicit_sizes()) {
      // The last knot does not depend on the sizes: it is the end of the box.
      own = select(e.location.last, zero, grad.inner);
      outer = select(e.location.last, grad.outer, grad.both);
      inner = zero;
    } else {
      const V slope = axis.slope * logit_scale / (axis.left_sum + axis.right_sum);
      outer = slope * (grad.both * bin.sum_inner + grad.outer * bin.own);
      own = slope * (grad.inner * bin.sum_inner - grad.outer * bin.sum_outer);
      inner = zero - slope * (grad.both * bin.sum_outer + grad.inner * bin.own);
    }
    const V index = number_of_bin(e);
    const V before = select(mirrored, inner, outer), after = select(mirrored, outer, inner);
    const auto pick = [&](int k) ROBUSTFLOW_INLINE {
      return select(index > V(k), before, select(index == V(k), own, after));
    };
    // Select, do not multiply by 0: the sizes may be NaN.
    const auto write_all = [&](auto&& value) ROBUSTFLOW_INLINE {
      unroll<BINS>(bins(), [&](int k) ROBUSTFLOW_INLINE {
        sink(group, k, select(e.outside, zero, V(value(k))));
      });
    };
    if (has_explicit_sizes()) return write_all(pick);
    if (parametrization != Parametrization::softclip) {
      return write_all([&](int k) ROBUSTFLOW_INLINE { return axis.size[k] * pick(k); });
    }
    write_all([&](int k) ROBUSTFLOW_INLINE {
      return V(axis.size[k] * pick(k)) * clipped(source(group, k)).slope;
    });
  }

  // The index of an element's bin, counted from the left.
  ROBUSTFLOW_FN V number_of_bin(const Element& e) const {
    return select(e.location.mirrored, V(bins() - 1) - e.location.index, e.location.index);
  }

  template <class Sink>
  ROBUSTFLOW_FN void derivative_gradients(const Element& e, V grad_outer, V grad_inner,
                                          const Sink& sink) const {
    const V zero = V(0);
    grad_outer = select(e.outside, zero, grad_outer);
    grad_inner = select(e.outside, zero, grad_inner);
    const V index = number_of_bin(e);
    const V left = select(e.location.mirrored, grad_inner, grad_outer);
    const V right = select(e.location.mirrored, grad_outer, grad_inner);
    unroll<0>(rq_num_derivatives(bins(), tails), [&](int j) ROBUSTFLOW_INLINE {
      const int knot = tails == Tails::linear ? j + 1 : j;
      V v = select(index == V(knot), left, select(index == V(knot - 1), right, zero));
      if (tails == Tails::circular && j == 0) {
        v = v + select(index == V(bins() - 1), right, zero);
      }
      sink(kDerivatives, j, v);
    });
  }
};

// If BINS > 0, it is the number of bins, and the workspace is in registers.
template <class V, int BINS>
struct RqOp {
  using Lane = V;
  using Config = RqSplineConfig;
  static constexpr int kGroups = 4, kParameters = 0;
  static constexpr int kMaxWorkspace = BINS > 0 ? 0 : rq_workspace(kMaxBins);
  static constexpr int kMinBlocksPerMultiprocessor[] = {!is_float32<V> ? 4
                                                        : BINS > 10    ? 5
                                                        : BINS > 8     ? 7
                                                                       : 8,
                                                        !is_float32<V> ? 3
                                                        : BINS > 8     ? 4
                                                        : BINS > 0     ? 5
                                                                       : 7};
  using Pointer = std::conditional_t<BINS == 0, workspace_t<V>, V*>;

  RqSpline<V, BINS, Pointer> math;
  int num_derivatives;
  bool box_in_row;
  Box<V> box;  // the same for all elements, unless box_in_row

  ROBUSTFLOW_FN explicit RqOp(const Config& config, const double* edges = nullptr)
      : math(config),
        num_derivatives(rq_num_derivatives(config.num_bins, config.tails)),
        box_in_row(!edges) {
    if (edges) box = {V(edges[0]), V(edges[1]), V(edges[2]), V(edges[3])};
  }

  ROBUSTFLOW_FN int column(int group) const {
    if (group < kBox) return group * math.bins();
    return 2 * math.bins() + num_derivatives;
  }
  ROBUSTFLOW_FN int workspace() const { return BINS > 0 ? 0 : rq_workspace(math.bins()); }

  template <class Parameter>
  ROBUSTFLOW_FN Box<V> box_of(const Parameter& p) const {
    if (!box_in_row) return box;
    return {p(kBox, 0), p(kBox, 1), p(kBox, 2), p(kBox, 3)};
  }

  // Calls f with a workspace in registers, or with `memory`.
  template <class F>
  ROBUSTFLOW_FN static auto with_workspace(workspace_t<V> memory, F&& f) {
    if constexpr (BINS > 0) {
      V registers[rq_workspace(BINS)];
      return f(static_cast<V*>(registers));
    } else {
      return f(memory);
    }
  }

  template <bool inverse, class Parameter>
  ROBUSTFLOW_FN auto transform(V x, const Parameter& p, workspace_t<V> memory) const {
    return with_workspace(memory, [&](Pointer workspace) ROBUSTFLOW_INLINE {
      return math.template transform<inverse>(x, box_of(p), p, workspace);
    });
  }
  template <class Parameter>
  ROBUSTFLOW_FN V log_slope(const Parameter&, V slope) const {
    return logarithm(slope);
  }
  template <bool inverse, class Parameter, class Sink>
  ROBUSTFLOW_FN V gradient(V x, const Parameter& p, workspace_t<V> memory, V gy, V gl,
                           const Sink& sink) const {
    return with_workspace(memory, [&](Pointer workspace) ROBUSTFLOW_INLINE {
      return math.template gradient<inverse>(x, box_of(p), p, workspace, gy, gl, sink);
    });
  }
};

struct RqTransform {
  using Config = RqSplineConfig;
  static constexpr int kGroups = 3, kConstants = 4;
  static constexpr Packs kPacks{.avx512 = {2, 2}, .avx = {2, 2}, .others = {1, 1}};

  template <class V>
  using Op = RqOp<V, 0>;

  // Adapters with a fixed number of bins for the usual numbers, in float32.
  template <class V, class F>
  static auto with_op(const Config& config, F&& f) {
    if constexpr (is_float32<V>) {
      if (config.parametrization != Parametrization::knots) switch (config.num_bins) {
          case 8:
            return f.template operator()<RqOp<V, 8>>();
          case 10:
            return f.template operator()<RqOp<V, 10>>();
          case 16:
            return f.template operator()<RqOp<V, 16>>();
        }
    }
    return f.template operator()<RqOp<V, 0>>();
  }

  static Settings<Config> settings(DType x, std::int64_t num_bins, bool inverse, std::int64_t tails,
                                   std::int64_t parametrization, double left, double right,
                                   double bottom, double top, double min_bin_width,
                                   double min_bin_height, double min_derivative,
                                   double logit_scale) {
    const int bins = static_cast<int>(num_bins);
    const auto which_tails = static_cast<Tails>(tails);
    return {inverse,
            {bins, which_tails, static_cast<Parametrization>(parametrization), min_bin_width,
             min_bin_height, min_derivative, logit_scale, -1 / __builtin_log(min_derivative),
             format_of(x)},
            {bins, bins, rq_num_derivatives(bins, which_tails)},
            {left, right, bottom, top},
            {"bins", num_bins, 1, kMaxBins}};
  }
};

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
