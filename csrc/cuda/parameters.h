// How the kernels pass an element's parameters to the adapters of csrc/math.
#pragma once

#include "../transforms.h"
#include "cuda/device.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// A pointer to every `stride`-th number of an array.
template <class V>
struct StridedPointer {
  V* data;
  int stride;
  ROBUSTFLOW_DEVICE V& operator[](int i) const { return data[i * stride]; }
  ROBUSTFLOW_DEVICE StridedPointer operator+(int n) const { return {data + n * stride, stride}; }
};

// The stride of a workspace is the number of threads in the block, so that the threads of a warp
// use different banks of shared memory.
template <>
struct WorkspaceOf<FastFloat> {
  using type = StridedPointer<FastFloat>;
};
template <>
struct WorkspaceOf<double> {
  using type = StridedPointer<double>;
};

// Parameters in a row. `Array` is a pointer or a class with operator[].
template <class Op, class Array>
struct Row {
  const Op& op;
  Array number;
  ROBUSTFLOW_DEVICE decltype(auto) operator()(int group, int k) const {
    return number[op.column(group) + k];
  }
};

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
