// The interface of a transform for the operators and for the CPU's and GPU's kernels. A transform's
// header in this folder ends with the two structs below, and csrc/transforms.h lists it.
//
// 1. An adapter, a template over the lane, passes an element's parameters to the formulas:
//
//   template <class V> struct Op {
//     Lane = V, Config
//     kGroups         number of groups: tensors of parameters, which follow x among the operands
//     kParameters     number of an element's parameters, equally many in each group; 0: it is known
//                     only at run time
//     kMaxWorkspace   the largest value of workspace()
//     kMinBlocksPerMultiprocessor
//                     for __launch_bounds__, with blocks of 128 threads: a value for the transform
//                     and one for its gradient. As large as possible without register spills;
//                     tests/backends/aot reports registers and spills
//     Op(config, constants)  `constants` is the group of constants if all elements share it; null:
//                            each element has its own, in the last group
//     column(group)   index of the group's first parameter in a row of all of the element's
//                     parameters
//     workspace()     number of lanes of scratch memory that an element needs
//     transform<inverse>(x, parameter, workspace)  returns {value, slope}
//     log_slope(parameter, slope)                  returns the logarithm of that slope
//     gradient<inverse>(x, parameter, workspace, gy, gl, sink)
//                     returns the gradient of x, and calls sink(group, k, v) with those of the
//                     parameters
//   };
//
// parameter(group, k) returns parameter k of a group. sink(group, k, v) may overwrite it.
//
// 2. A description of the operator's arguments:
//
//   struct Transform {
//     Config
//     kGroups         number of groups of parameters with a gradient. The caller always passes the
//                     first tensor; if it omits any other, the first holds the parameters of all
//     kConstants      length of the optional tensor of constants, which follows the groups; 0: none
//     kPacks          how many SIMD registers make a lane on the CPU
//     Op<V>           an adapter that is right for every configuration
//     with_op<V>(config, f)  calls f.operator()<Op>() with the fastest adapter for `config`
//     settings(x's dtype, numbers)  the Settings below, from the operator's numbers in the order of
//                                   its schema (robustflow/_transforms.py)
//   };
#pragma once

#include "../dtype.h"
#include "lane.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// The largest kGroups and kConstants of a description.
inline constexpr int kMaxGroups = 3, kMaxConstants = 4;

// A setting that must lie within [min, max], because kernels have memory of a fixed size for it.
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

// SIMD registers in a lane: enough to hide the latency of the formulas, few enough not to spill.
struct Registers {
  int transform, gradient;
};
struct Packs {
  Registers avx512, avx, others;
};

// The type of an element's workspace: a pointer to lanes. csrc/cuda/parameters.h specialises it.
template <class V>
struct WorkspaceOf {
  using type = V*;
};
template <class V>
using workspace_t = typename WorkspaceOf<V>::type;

// The base of descriptions with one adapter for all configurations.
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
