// What the operators (csrc/ops.h) pass to a device: tensors as pointers and strides, and the
// transform to run on them. Independent of torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace robustflow {

inline constexpr int kMaxDims = 16;

// One tensor of a problem, over the problem's dimensions and an axis of planes (an element's
// parameters).
struct Operand {
  void* data = nullptr;  // null: a zero input, or an output that is not wanted
  DType dtype = DType::float32;
  std::int64_t stride[kMaxDims] = {};  // 0 where the tensor is broadcast
  int num_parameters = 0;
  std::int64_t parameter_stride = 0;
  // If not -1: this operand is a part of that earlier operand, from its `first_parameter` on.
  int part_of = -1;
  int first_parameter = 0;
  bool on_host = false;  // numbers for every element, in the host's memory
};

// Operands of a problem. Inputs are x, the groups of parameters, and, of a backward problem, the
// cotangents of y and of the log-determinant. Outputs are y and the log-determinant, or the gradients
// by x and by the groups.
inline constexpr int kMaxInputs = 7;
inline constexpr int kMaxOutputs = 4;

enum class Transform : int;  // csrc/transforms.h

struct Problem {
  Transform transform;
  bool inverse;
  const void* config;        // the transform's own, from csrc/math
  std::size_t config_bytes;  // its size
  bool use_float64;          // compute in float64

  int dims = 0;
  std::int64_t size[kMaxDims] = {};
  int num_inputs = 0, num_outputs = 0;
  Operand in[kMaxInputs], out[kMaxOutputs];
};

// The dimensions over which a backward problem's parameters are shared, so that their gradients are
// sums: those in which no wanted gradient of a parameter has a stride.
struct SharedDims {
  bool dim[kMaxDims] = {};
  bool any = false;

  explicit SharedDims(const Problem& problem) {
    for (int d = 0; d < problem.dims; ++d) {
      bool needed = false, varies = false;
      for (int i = 1; i < problem.num_outputs; ++i) {
        const Operand& out = problem.out[i];
        if (out.part_of >= 0 || !out.data) continue;
        needed = true;
        varies = varies || out.stride[d] != 0;
      }
      dim[d] = needed && problem.size[d] > 1 && !varies;
      any = any || dim[d];
    }
  }
};

}  // namespace robustflow
