// An element's parameters as the kernels keep them, for the adapters of csrc/math.
#pragma once

#include "../transforms.h"
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

// A workspace is strided by the threads of a block: no two share a bank of shared memory.
template <>
struct WorkspaceOf<FastFloat> {
  using type = StridedPointer<FastFloat>;
};
template <>
struct WorkspaceOf<double> {
  using type = StridedPointer<double>;
};

// Parameters in a row: an array, or what has [] as one.
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
