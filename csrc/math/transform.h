// The interface of a transform for the operators and for the CPU's and GPU's kernels. A transform's
// header in this folder ends with both parts below, and csrc/transforms.h lists it.
//
// 1. An adapter for each lane type passes an element's parameters to the formulas:
//
//   template <class V> struct Op {
//     Lane = V, Config
//     kGroups         tensors of parameters, after x among the operands
//     kParameters         parameters of an element, as many in each group; 0 where that is known at run
//                     time only
//     kMaxWorkspace   the most lanes of memory that an element takes beside them
//     kMinBlocksPerMultiprocessor         of a GPU: blocks of 128 threads that the registers of a multiprocessor must
//                     hold at once, for the transform and for its gradient: as many as do without
//                     spilling (tests/backends/aot shows the registers)
//     Op(config, constants)        `constants` is the group of constants where all elements share
//                                  it; null: it is among the groups
//     column(group)                where a group begins in a row of all an element's parameters
//     workspace()                  lanes that an element takes, at most kMaxWorkspace
//     transform<inverse>(x, parameter, workspace)           {value, slope}
//     log_slope(parameter, slope)                           the logarithm of that slope
//     gradient<inverse>(x, parameter, workspace, gy, gl, sink)
//       the gradient by x; those by the parameters go to sink(group, k, v)
//   };
//
// parameter(group, k) is number k of a group. The sink may overwrite it.
//
// 2. A description of the operator's arguments:
//
//   struct Transform {
//     Config
//     kGroups                      tensors of parameters with a gradient. The first must be there;
//                                  where another is not, the first has the parameters of all
//     kConstants                   numbers in a tensor of constants behind them, which may be left
//                                  out; 0: there is no such tensor
//     kPacks                       the CPU's lanes
//     Op<V>                        the adapter for every configuration
//     with_op<V>(config, f)        f.operator()<Op>() with the fastest adapter for this one
//     settings(x's type, numbers)  from the operator's numbers, in the order of its schema
//                                  (robustflow/_transforms.py)
//   };
#pragma once

#include "../dtype.h"
#include "lane.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// Groups of parameters with a gradient, and numbers in the group of constants.
inline constexpr int kMaxGroups = 3, kMaxConstants = 4;

// A number that must lie within bounds, because kernels keep that many numbers in fixed-size
// memory.
struct Limit {
  const char* what;
  std::int64_t value, min, max;
};

template <class CONFIG>
struct Settings {
  bool inverse;
  CONFIG config;
  int num_parameters[kMaxGroups];  // of each group with a gradient
  double constants[kMaxConstants] = {};
  Limit limit = {"", 0, 0, 0};
};

// Registers side by side in a lane: as many as hide the latency of a formula, until they spill.
struct Registers {
  int transform, gradient;
};
struct Packs {
  Registers avx512, avx, others;
};

// Memory that an element takes beside its parameters: an array of lanes. A GPU's header says what it
// is there.
template <class V>
struct WorkspaceOf {
  using type = V*;
};
template <class V>
using workspace_t = typename WorkspaceOf<V>::type;

// Of a description: one adapter for all configurations.
template <template <class> class OP>
struct OneAdapter {
  template <class V>
  using Op = OP<V>;

  template <class V, class Config, class F>
  static auto with_op(const Config&, F&& f) {
    return f.template operator()<OP<V>>();
  }
};

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
