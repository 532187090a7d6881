// What the operators (csrc/ops.h) pass to a device: the transform, and its tensors as pointers and
// strides. Independent of torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace robustflow {

inline constexpr int kMaxDims = 16;

// One tensor of a problem. It has the problem's dimensions and, last, one for the parameters of an
// element. x, y, the log-determinant and their cotangents count as one parameter.
struct Operand {
  void* data = nullptr;  // null: an input of zeros, or an output that is not needed
  DType dtype = DType::float32;
  std::int64_t stride[kMaxDims] = {};  // 0 where the tensor is broadcast
  int num_parameters = 0;
  std::int64_t parameter_stride = 0;
  // If not -1: the index of an earlier operand that has these parameters, from `first_parameter`
  // on. Its own `data` and strides are then not used.
  int part_of = -1;
  int first_parameter = 0;
  bool on_host = false;  // one row of float64 in host memory, the same for every element
};

// Operands of a problem. Forward: x and the groups of parameters give y and the log-determinant.
// Backward: x, the groups, and the cotangents of y and of the log-determinant give the gradients of
// x and of the groups.
inline constexpr int kMaxInputs = 7;
inline constexpr int kMaxOutputs = 4;

enum class Transform : int;  // csrc/transforms.h

struct Problem {
  Transform transform;
  bool inverse;
  const void* config;        // the transform's own struct, from csrc/math
  std::size_t config_bytes;  // sizeof of that struct
  bool use_float64;          // compute in float64

  int dims = 0;
  std::int64_t size[kMaxDims] = {};
  int num_inputs = 0, num_outputs = 0;
  Operand in[kMaxInputs], out[kMaxOutputs];
};

// The dimensions over which a backward problem's parameters are shared, so that their gradients are
// sums: those where every gradient of parameters that is needed has the stride 0.
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
