// The transforms of csrc/math as the kernels call them: with an element's parameters in a row.
#pragma once

#include "../math/affine.h"
#include "../math/modified_rq.h"
#include "../math/rq_spline.h"
#include "cuda/device.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// Every n-th number of an array.
template <class V>
struct StridedPointer {
  V* data;
  int stride;
  ROBUSTFLOW_DEVICE V& operator[](int i) const { return data[i * stride]; }
  ROBUSTFLOW_DEVICE StridedPointer operator+(int n) const { return {data + n * stride, stride}; }
};

// An Op<V> has
//   kGroups              tensors of parameters, after x among the operands
//   kPlanes              parameters of an element, 0 where that is known at run time only
//   kWorkspace           whether it takes a workspace
//   kBlocks              blocks of kStagedThreads that the registers of a multiprocessor must hold
//                        at once, for the transform and for its gradient: as many as do without
//                        spilling (tests/aot shows the registers)
//   transform<inverse>(x, row, workspace)           {value, slope}
//   log_slope(row, slope)                           the logarithm of that slope
//   gradient<inverse>(x, row, workspace, gy, gl, sink)
//     the gradient by x; those by the parameters go to sink(index in the row, v)
// `row` is what an array of V is; sink may write to it, at the index that it is called with.

template <class V>
struct ModifiedRqOp {
  using Lane = V;
  using Config = ModifiedRqConfig;
  static constexpr int kGroups = 1, kPlanes = 4;
  static constexpr bool kWorkspace = false;
  static constexpr int kBlocks[] = {is_single<V> ? 8 : 4, is_single<V> ? 8 : 4};

  ModifiedRq<V> math;

  explicit ModifiedRqOp(const Config& config) : math(config) {}

  template <bool inverse, class Row, class Workspace>
  ROBUSTFLOW_DEVICE auto transform(V x, const Row& row, Workspace) const {
    return math.template transform<inverse>(x, row[0], row[1], row[2], row[3]);
  }
  template <class Row>
  ROBUSTFLOW_DEVICE V log_slope(const Row&, V slope) const {
    return logarithm(slope);
  }
  template <bool inverse, class Row, class Workspace, class Sink>
  ROBUSTFLOW_DEVICE V gradient(V x, const Row& row, Workspace, V gy, V gl, Sink&& sink) const {
    const auto g = math.template gradient<inverse>(x, row[0], row[1], row[2], row[3], gy, gl);
    sink(0, g.width);
    sink(1, g.height);
    sink(2, g.derivative);
    sink(3, g.shift);
    return g.x;
  }
};

template <class V>
struct AffineOp {
  using Lane = V;
  using Config = AffineConfig;
  static constexpr int kGroups = 2, kPlanes = 2;
  static constexpr bool kWorkspace = false;
  static constexpr int kBlocks[] = {is_single<V> ? 8 : 4, is_single<V> ? 8 : 4};

  Affine<V> math;

  explicit AffineOp(const Config& config) : math(config) {}

  template <bool inverse, class Row, class Workspace>
  ROBUSTFLOW_DEVICE auto transform(V x, const Row& row, Workspace) const {
    return math.template transform<inverse>(x, row[0], row[1]);
  }
  template <class Row>
  ROBUSTFLOW_DEVICE V log_slope(const Row& row, V slope) const {
    return math.log_slope(row[1], slope);
  }
  template <bool inverse, class Row, class Workspace, class Sink>
  ROBUSTFLOW_DEVICE V gradient(V x, const Row& row, Workspace, V gy, V gl, Sink&& sink) const {
    const auto g = math.template gradient<inverse>(x, row[0], row[1], gy, gl);
    sink(0, g.shift);
    sink(1, g.logit);
    return g.x;
  }
};

// A row holds K widths, K heights, the derivatives, and the box. BINS is K where the compiler may
// know it: the workspace then lives in registers.
template <class V, int BINS>
struct RqOp {
  using Lane = V;
  using Config = RqSplineConfig;
  static constexpr int kGroups = 4, kPlanes = 0;
  static constexpr bool kWorkspace = BINS == 0;
  static constexpr int kBlocks[] = {!is_single<V> ? 4
                                    : BINS > 10   ? 5
                                    : BINS > 8    ? 7
                                                  : 8,
                                    !is_single<V> ? 4
                                    : BINS > 8    ? 4
                                    : BINS > 0    ? 5
                                                  : 7};
  using Workspace = std::conditional_t<kWorkspace, StridedPointer<V>, V*>;

  RqSpline<V, BINS, Workspace> math;
  int num_derivatives;
  bool box_in_row;
  Box<V> box;  // of all elements, where it is not in the row

  RqOp(const Config& config, const double* edges)
      : math(config),
        num_derivatives(rq_num_derivatives(config.num_bins, config.tails)),
        box_in_row(!edges) {
    if (edges) box = {V(edges[0]), V(edges[1]), V(edges[2]), V(edges[3])};
  }

  template <class Row>
  struct Source {
    const Row& row;
    int num_bins;
    ROBUSTFLOW_DEVICE V width(int k) const { return row[k]; }
    ROBUSTFLOW_DEVICE V height(int k) const { return row[num_bins + k]; }
    ROBUSTFLOW_DEVICE V derivative(int j) const { return row[2 * num_bins + j]; }
  };
  template <class Put>
  struct Sink {
    const Put& put;
    int num_bins;
    ROBUSTFLOW_DEVICE void width(int k, V v) const { put(k, v); }
    ROBUSTFLOW_DEVICE void height(int k, V v) const { put(num_bins + k, v); }
    ROBUSTFLOW_DEVICE void derivative(int j, V v) const { put(2 * num_bins + j, v); }
  };
  template <class Row>
  ROBUSTFLOW_DEVICE Box<V> box_of(const Row& row) const {
    const int first = 2 * math.bins() + num_derivatives;
    if (!box_in_row) return box;
    return {row[first], row[first + 1], row[first + 2], row[first + 3]};
  }

  // The workspace in registers, or the one that came.
  template <class F>
  ROBUSTFLOW_DEVICE static auto with_workspace(StridedPointer<V> workspace, F&& f) {
    if constexpr (kWorkspace) {
      return f(workspace);
    } else {
      V registers[rq_workspace(BINS)];
      return f(static_cast<V*>(registers));
    }
  }

  template <bool inverse, class Row>
  ROBUSTFLOW_DEVICE auto transform(V x, const Row& row, StridedPointer<V> workspace) const {
    return with_workspace(workspace, [&](Workspace w) {
      return math.template transform<inverse>(x, box_of(row), Source<Row>{row, math.bins()}, w);
    });
  }
  template <class Row>
  ROBUSTFLOW_DEVICE V log_slope(const Row&, V slope) const {
    return logarithm(slope);
  }
  template <bool inverse, class Row, class Put>
  ROBUSTFLOW_DEVICE V gradient(V x, const Row& row, StridedPointer<V> workspace, V gy, V gl,
                               Put&& put) const {
    return with_workspace(workspace, [&](Workspace w) {
      return math.template gradient<inverse>(x, box_of(row), Source<Row>{row, math.bins()}, w, gy,
                                             gl, Sink<Put>{put, math.bins()});
    });
  }
};

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
