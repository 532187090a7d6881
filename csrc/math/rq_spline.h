// The rational-quadratic spline with K bins: Durkan et al. 2019 (arXiv:1906.04032).
//
// Parameters are K width logits, K height logits and D derivative logits, read through a source
// with width(k), height(k) and derivative(j), so that the formulas do not depend on where they lie.
// Sizes are kept unnormalised in a workspace of rq_workspace() lanes.
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
  knots = 2,     // sizes and derivatives as they are
};

struct RqSplineConfig {
  int num_bins;
  Tails tails;
  Parametrization parametrization;
  double min_bin_width, min_bin_height, min_derivative;
  double logit_scale;
  double inverse_bound;  // 1 / |log slope| of the soft clipping
  Format x_format;       // of x and y in memory
};

// Kernels keep their data of all bins in fast memory. The same number stands in
// robustflow/_transforms.py.
inline constexpr int kMaxBins = 256;

ROBUSTFLOW_FN int rq_num_derivatives(int num_bins, Tails tails) {
  return num_bins + (tails == Tails::linear ? -1 : tails == Tails::none ? 1 : 0);
}

// Knots up to this one are measured from the left end of the box, the others from the right. If the
// bins are of similar size that is the nearer end, whose rounding error is smaller.
ROBUSTFLOW_FN constexpr int rq_middle_knot(int num_bins) { return num_bins / 2; }

// Lanes of an axis' workspace, and of both: K sizes, and a sum for each knot behind the middle.
ROBUSTFLOW_FN constexpr int rq_axis_workspace(int num_bins) {
  return num_bins + (num_bins - 1) / 2;
}
ROBUSTFLOW_FN constexpr int rq_workspace(int num_bins) { return 2 * rq_axis_workspace(num_bins); }

template <class V>
struct Box {
  V left, right, bottom, top;
};

// BINS is the number of bins if it is known at compile time, else 0. Workspace is a pointer type
// with [] and +, so that a workspace may be strided.
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

  ROBUSTFLOW_FN int bins() const { return BINS > 0 ? BINS : num_bins; }

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

  // Bin k has the size step + slope * size[k]. Knot k is start + k step + slope * (the sizes before
  // it), or, behind the middle, the end minus the same of the sizes behind it.
  struct Axis {
    V start, end, step, slope, sum;
    Workspace size, behind;  // behind[j]: the sizes behind knot rq_middle_knot() + 1 + j
  };

  ROBUSTFLOW_FN V knot(const Axis& axis, int k, V before) const {
    const int past_middle = k - rq_middle_knot(bins()) - 1;
    // Ready-made sizes need not sum exactly to the box: their knots are measured from the start.
    if (past_middle < 0 || parametrization == Parametrization::knots) {
      return axis.slope * before + (axis.start + V(k) * axis.step);
    }
    return (axis.end - V(bins() - k) * axis.step) - axis.slope * axis.behind[past_middle];
  }

  // Sizes along an axis, from logits.
  template <class Logit>
  ROBUSTFLOW_FN Axis axis(V start, V end, V min_bin, Workspace size, Logit&& logit) const {
    const Workspace behind = size + bins();
    V sum = V(0);
    const auto keep = [&](int k, V v) ROBUSTFLOW_INLINE {
      size[k] = v;
      sum = sum + v;
      const int past_middle = k - rq_middle_knot(bins()) - 1;
      if (past_middle >= 0) behind[past_middle] = sum;
    };
    const V length = end - start;
    V step = V(0), slope = V(1);  // of ready-made sizes
    if (parametrization == Parametrization::knots) {
      backwards([&](int k) ROBUSTFLOW_INLINE { keep(k, logit(k)); });
    } else if (parametrization == Parametrization::softclip) {
      backwards([&](int k) ROBUSTFLOW_INLINE {
        keep(k, exp2_within_limit(V(V(kLog2E) * clipped(logit(k)).value)));
      });
      slope = length / sum;
    } else {
      V largest = logit(0);
      repeat<BINS, 1>(bins(),
                      [&](int k) ROBUSTFLOW_INLINE { largest = at_least(largest, logit(k)); });
      const V scale = V(kLog2E) * logit_scale;
      backwards([&](int k) ROBUSTFLOW_INLINE {
        keep(k, exp2_of_negative(V(scale * (logit(k) - largest))));
      });
      step = length * min_bin;
      slope = length * (V(1) - V(bins()) * min_bin) / sum;
    }
    return {start, end, step, slope, sum, size, behind};
  }

  // f(bins() - 1), ... f(0).
  template <class F>
  ROBUSTFLOW_FN void backwards(F&& f) const {
    repeat<BINS>(bins(), [&](int i) ROBUSTFLOW_INLINE { f(bins() - 1 - i); });
  }

  // A size logit within +-half the bound; the slope is by logit_scale * logit.
  ROBUSTFLOW_FN SoftClip<V> clipped(V logit) const {
    return soft_clip(V(logit_scale * logit), V(V(2) * inverse_bound));
  }

  // The logit of an inner knot, of the first and of the last; linear tails have none at the box's
  // edges.
  template <class Source>
  ROBUSTFLOW_FN V inner_logit(const Source& source, int knot) const {
    return source.derivative(tails == Tails::linear ? knot - 1 : knot);
  }
  template <class Source>
  ROBUSTFLOW_FN V first_logit(const Source& source) const {
    return tails == Tails::linear ? V(1) : source.derivative(0);
  }
  template <class Source>
  ROBUSTFLOW_FN V last_logit(const Source& source) const {
    if (tails == Tails::linear) return V(1);
    return source.derivative(tails == Tails::circular ? 0 : bins());
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

  // Where an element is, and its bin.
  struct Element {
    RqBin<V> bin;
    V index;               // of the bin
    V size_x, size_y;      // unnormalised sizes of the bin,
    V before_x, before_y;  // of all the bins before it,
    V after_x, after_y;    // and of all behind it
    Derivative d0, d1;
    Mask outside;
  };

  // Written so that NaN counts as inside and stays NaN.
  ROBUSTFLOW_FN Mask outside(V key, V lower, V upper) const {
    if (tails == Tails::linear) return (key <= lower) | (key >= upper);
    // The edges belong to the spline, and so do their roundings to x's dtype, which may lie
    // outside.
    if (is_narrower<V>(x_format)) {
      lower = at_most(lower, as_stored(lower));
      upper = at_least(upper, as_stored(upper));
    }
    return (key < lower) | (key > upper);
  }
  ROBUSTFLOW_FN V as_stored(V edge) const {
    // Double precision is converted to half types through single precision.
    if constexpr (!is_single<V>) edge = rounded_to(edge, kFloat32);
    return rounded_to(edge, x_format);
  }

  template <bool inverse, class Source>
  ROBUSTFLOW_FN Element locate(const Axis& x, const Axis& y, const Source& source, V key) const {
    Element e;
    const V lower = inverse ? y.start : x.start, upper = inverse ? y.end : x.end;
    e.outside = outside(key, lower, upper);
    e.index = V(0);
    e.size_x = x.size[0];
    e.size_y = y.size[0];
    e.before_x = e.before_y = e.after_x = e.after_y = V(0);
    V x0 = x.start, y0 = y.start, x1 = x.end, y1 = y.end;
    V logit0 = first_logit(source), logit1 = last_logit(source);
    V before_x = V(0), before_y = V(0);
    // Go from knot to knot. If the key passed the previous knot, this knot is its bin's right end
    // (so far). If it passed this knot, this is its bin's left end. NaN passes no knot.
    Mask first = lower <= lower, reached = first;
    repeat<BINS, 1>(bins(), [&](int k) ROBUSTFLOW_INLINE {
      before_x = before_x + x.size[k - 1];
      before_y = before_y + y.size[k - 1];
      const V knot_x = knot(x, k, before_x), knot_y = knot(y, k, before_y);
      const V logit = inner_logit(source, k);
      x1 = select(reached, knot_x, x1);
      y1 = select(reached, knot_y, y1);
      logit1 = select(reached, logit, logit1);
      reached = key >= (inverse ? knot_y : knot_x);
      x0 = select(reached, knot_x, x0);
      y0 = select(reached, knot_y, y0);
      logit0 = select(reached, logit, logit0);
      e.size_x = select(reached, x.size[k], e.size_x);
      e.size_y = select(reached, y.size[k], e.size_y);
      e.index = select(reached, V(k), e.index);
      e.before_x = select(reached, before_x, e.before_x);
      e.before_y = select(reached, before_y, e.before_y);
      e.after_x = e.after_x + select(reached, V(0), x.size[k]);
      e.after_y = e.after_y + select(reached, V(0), y.size[k]);
      if (k == 1) first = !reached;
    });
    x1 = select(reached, x.end, x1);
    y1 = select(reached, y.end, y1);
    logit1 = select(reached, last_logit(source), logit1);
    e.d0 = derivative(logit0);
    e.d1 = derivative(logit1);
    if (tails == Tails::linear) {
      e.d0.value = select(first, V(1), e.d0.value);
      e.d1.value = select(reached, V(1), e.d1.value);
    }
    V width = x.step + x.slope * e.size_x, height = y.step + y.slope * e.size_y;
    if (parametrization == Parametrization::knots) {  // the last knot is the end of the box
      width = select(reached, x.end - x0, width);
      height = select(reached, y.end - y0, height);
    }
    e.bin = {x0, x1, y0, y1, {width, height, e.d0.value, e.d1.value}};
    return e;
  }

  // The result for an element outside the box.
  ROBUSTFLOW_FN Output tails_of(V key) const {
    const V nan = V(__builtin_nan(""));
    return tails == Tails::none ? Output{nan, nan} : Output{key, V(1)};
  }

  template <bool inverse, class Source>
  ROBUSTFLOW_FN Output transform(V key, const Box<V>& box, const Source& source,
                                 Workspace workspace) const {
    const Axis x = axis(box.left, box.right, min_bin_width, workspace,
                        [&](int k) ROBUSTFLOW_INLINE { return source.width(k); });
    const Axis y = axis(box.bottom, box.top, min_bin_height, workspace + rq_axis_workspace(bins()),
                        [&](int k) ROBUSTFLOW_INLINE { return source.height(k); });
    const Element e = locate<inverse>(x, y, source, key);
    const Output tail = tails_of(key);
    RqValue<V> point = rq_transform<inverse>(e.bin, key);
    if (tails != Tails::linear) {  // an inner knot may be rounded past the end of the box
      const Axis& result = inverse ? x : y;
      point.value = at_least(result.start, at_most(result.end, point.value));
    }
    return {select(e.outside, tail.value, point.value), select(e.outside, tail.slope, point.slope)};
  }

  // Gradients of grad_y * y + grad_logabsdet * logabsdet, where y is the output of either
  // direction; returns the one by the input and hands the others to
  // sink.width(k, v), sink.height(k, v) and sink.derivative(j, v).
  template <bool inverse, class Source, class Sink>
  ROBUSTFLOW_FN V gradient(V key, const Box<V>& box, const Source& source, Workspace workspace,
                           V grad_y, V grad_logabsdet, const Sink& sink) const {
    const Axis x = axis(box.left, box.right, min_bin_width, workspace,
                        [&](int k) ROBUSTFLOW_INLINE { return source.width(k); });
    const Axis y = axis(box.bottom, box.top, min_bin_height, workspace + rq_axis_workspace(bins()),
                        [&](int k) ROBUSTFLOW_INLINE { return source.height(k); });
    const Element e = locate<inverse>(x, y, source, key);
    const RqGradient<V> g = rq_gradient<inverse>(e.bin, key, grad_y, grad_logabsdet);
    const V zero = V(0);
    size_gradients(
        x, e, {e.before_x, e.size_x, e.after_x}, {g.x0, g.x1, g.x_knots},
        [&](int k) ROBUSTFLOW_INLINE { return source.width(k); },
        [&](int k, V v) ROBUSTFLOW_INLINE { sink.width(k, v); });
    size_gradients(
        y, e, {e.before_y, e.size_y, e.after_y}, {g.y0, g.y1, g.y_knots},
        [&](int k) ROBUSTFLOW_INLINE { return source.height(k); },
        [&](int k, V v) ROBUSTFLOW_INLINE { sink.height(k, v); });
    const V by_d0 = select(e.outside, zero, V(g.log_d0 * e.d0.log_slope));
    const V by_d1 = select(e.outside, zero, V(g.log_d1 * e.d1.log_slope));
    const int num_derivatives = rq_num_derivatives(bins(), tails);
    repeat<0>(num_derivatives, [&](int j) ROBUSTFLOW_INLINE {
      const int knot = tails == Tails::linear ? j + 1 : j;
      V v = select(e.index == V(knot), by_d0, zero) + select(e.index == V(knot - 1), by_d1, zero);
      if (tails == Tails::circular && j == 0) {
        v = v + select(e.index == V(bins() - 1), by_d1, zero);
      }
      sink.derivative(j, v);
    });
    return select(e.outside, tails == Tails::none ? zero : grad_y, g.x);
  }

  // Unnormalised sizes of the bins before an element's, of its own, and of those behind it; and
  // the gradients by the left knot of its bin, by the right one, and by a shift of both.
  struct Sizes {
    V before, own, after;
  };
  struct KnotGradients {
    V left, right, both;
  };

  // The gradient by size logit j is slope size_j (C_j - mean). C_j is the gradient by the knots
  // that move with bin j: both of the element's if bin j is before its own, the right one for its
  // own, none if behind. The mean is weighted by size. The differences are written out, because
  // they cancel.
  template <class Logit, class Put>
  ROBUSTFLOW_FN void size_gradients(const Axis& axis, const Element& e, const Sizes& sizes,
                                    const KnotGradients& by, Logit&& logit, Put&& put) const {
    const V zero = V(0);
    const auto pick = [&](int k, V before, V own, V after) ROBUSTFLOW_INLINE {
      return select(e.index > V(k), before, select(e.index == V(k), own, after));
    };
    if (parametrization == Parametrization::knots) {
      // The last knot is the end of the box, whatever the sizes.
      const auto last = e.index == V(bins() - 1);
      const V own = select(last, zero, by.right), before = select(last, by.left, by.both);
      repeat<BINS>(bins(), [&](int k) ROBUSTFLOW_INLINE {
        put(k, select(e.outside, zero, pick(k, before, own, zero)));
      });
      return;
    }
    const bool clip = parametrization == Parametrization::softclip;
    const V slope = axis.slope * logit_scale / axis.sum;
    const V before = slope * (by.both * sizes.after + by.left * sizes.own);
    const V own = slope * (by.right * sizes.after - by.left * sizes.before);
    const V after = V(0) - slope * (by.both * sizes.before + by.right * sizes.own);
    repeat<BINS>(bins(), [&](int k) ROBUSTFLOW_INLINE {
      V v = axis.size[k] * pick(k, before, own, after);
      if (clip) v = v * clipped(logit(k)).slope;
      put(k, select(e.outside, zero, v));
    });
  }
};

// BINS is the number of bins if it is known at compile time: the workspace is then in registers.
template <class V, int BINS>
struct RqOp {
  using Lane = V;
  using Config = RqSplineConfig;
  static constexpr int kGroups = 4, kPlanes = 0;
  static constexpr int kMaxWorkspace = BINS > 0 ? 0 : rq_workspace(kMaxBins);
  static constexpr int kBlocks[] = {!is_single<V> ? 4
                                    : BINS > 10   ? 5
                                    : BINS > 8    ? 7
                                                  : 8,
                                    !is_single<V> ? 4
                                    : BINS > 8    ? 4
                                    : BINS > 0    ? 5
                                                  : 7};
  enum Group { kWidths, kHeights, kDerivatives, kBox };
  using Pointer = std::conditional_t<BINS == 0, workspace_t<V>, V*>;

  RqSpline<V, BINS, Pointer> math;
  int num_derivatives;
  bool box_in_row;
  Box<V> box;  // of all elements, if it is not among the groups

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
  struct Source {
    const Parameter& p;
    ROBUSTFLOW_FN V width(int k) const { return p(kWidths, k); }
    ROBUSTFLOW_FN V height(int k) const { return p(kHeights, k); }
    ROBUSTFLOW_FN V derivative(int j) const { return p(kDerivatives, j); }
  };
  template <class Put>
  struct Sink {
    const Put& put;
    ROBUSTFLOW_FN void width(int k, V v) const { put(kWidths, k, v); }
    ROBUSTFLOW_FN void height(int k, V v) const { put(kHeights, k, v); }
    ROBUSTFLOW_FN void derivative(int j, V v) const { put(kDerivatives, j, v); }
  };
  template <class Parameter>
  ROBUSTFLOW_FN Box<V> box_of(const Parameter& p) const {
    if (!box_in_row) return box;
    return {p(kBox, 0), p(kBox, 1), p(kBox, 2), p(kBox, 3)};
  }

  // A workspace in registers, or the given one.
  template <class F>
  ROBUSTFLOW_FN static auto with_workspace(workspace_t<V> given, F&& f) {
    if constexpr (BINS > 0) {
      V registers[rq_workspace(BINS)];
      return f(static_cast<V*>(registers));
    } else {
      return f(given);
    }
  }

  template <bool inverse, class Parameter>
  ROBUSTFLOW_FN auto transform(V x, const Parameter& p, workspace_t<V> given) const {
    return with_workspace(given, [&](Pointer workspace) ROBUSTFLOW_INLINE {
      return math.template transform<inverse>(x, box_of(p), Source<Parameter>{p}, workspace);
    });
  }
  template <class Parameter>
  ROBUSTFLOW_FN V log_slope(const Parameter&, V slope) const {
    return logarithm(slope);
  }
  template <bool inverse, class Parameter, class Put>
  ROBUSTFLOW_FN V gradient(V x, const Parameter& p, workspace_t<V> given, V gy, V gl,
                           const Put& put) const {
    return with_workspace(given, [&](Pointer workspace) ROBUSTFLOW_INLINE {
      return math.template gradient<inverse>(x, box_of(p), Source<Parameter>{p}, workspace, gy, gl,
                                             Sink<Put>{put});
    });
  }
};

struct RqTransform {
  using Config = RqSplineConfig;
  static constexpr int kGroups = 3, kConstants = 4;
  static constexpr Packs kPacks{.avx512 = {2, 2}, .avx = {2, 2}, .others = {1, 1}};

  template <class V>
  using Op = RqOp<V, 0>;

  // The usual numbers of bins, in single precision, are known to the compiler.
  template <class V, class F>
  static auto with_op(const Config& config, F&& f) {
    if constexpr (is_single<V>) {
      switch (config.num_bins) {
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
