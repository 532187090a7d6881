// Runs a kernel over tensors: cuts them into blocks, shares the blocks out to threads, reduces.
//
// Knows strides, dtypes, broadcasting and order; the formulas are the kernels', and torch is the
// caller's. Results do not depend on the number of threads: how a tensor is cut follows from its
// shape and layout alone.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace robustflow::cpu {

inline constexpr int kMaxDims = 16;

// One tensor of a problem, over the problem's dimensions and an axis of planes (an element's
// parameters).
struct Operand {
  void* data = nullptr;  // null: a zero input, or an output that nobody wants
  DType dtype = DType::float32;
  std::int64_t stride[kMaxDims] = {};  // 0 where the tensor is broadcast
  int planes = 0;
  std::int64_t plane_stride = 0;
  // Planes of an operand that comes before, from `first_plane` on, in place of memory of its own.
  int part_of = -1;
  int first_plane = 0;
};

enum class Transform { modified_rq, rq, affine };

struct Problem {
  Transform transform;
  bool inverse;
  const void* config;  // the transform's own, from csrc/math
  bool wide;           // compute in float64

  int dims = 0;
  std::int64_t size[kMaxDims] = {};
  int num_inputs = 0, num_outputs = 0;
  Operand in[kMaxInputs], out[kMaxOutputs];
};

// Calls task(begin, end, context) on ranges that cover [begin, end), perhaps in parallel.
using ParallelFor = void (*)(std::int64_t begin, std::int64_t end, std::int64_t grain,
                             void (*task)(std::int64_t, std::int64_t, void*), void* context);

// y and the log-determinant. With batch_dims == dims the latter is output 1; else output 1 is null
// and `logabsdet` (contiguous, compute type) gets its sum for every index of the first batch_dims.
void run_transform(const Problem& problem, int batch_dims, void* logabsdet, ParallelFor parallel);

// Gradients by x and by the parameters. A parameter's output has the stride 0 in the dimensions
// over which it is shared, the same ones for all, and gets the sum.
void run_gradient(const Problem& problem, ParallelFor parallel);

}  // namespace robustflow::cpu
