// Runs a problem on the current CUDA device: the counterpart of csrc/cpu/driver.h.
#pragma once

#include "../problem.h"

namespace robustflow::cuda {

// What a call may use. Kernels are enqueued on `stream` (a cudaStream_t); nothing waits for them.
struct Context {
  void* stream = nullptr;
  // Memory of the device for the kernels of this call, valid in the stream's order.
  void* (*allocate)(std::int64_t bytes, void* owner) = nullptr;
  void* owner = nullptr;
};

// y and the log-determinant. With batch_dims == dims the latter is output 1; else output 1 is null
// and `logabsdet` (contiguous, compute type) gets its sum for every index of the first batch_dims.
// Throws std::runtime_error where the device refuses.
void run_transform(const Problem& problem, int batch_dims, void* logabsdet, const Context& context);

// Gradients by x and by the parameters. A parameter's output has the stride 0 in the dimensions
// over which it is shared, the same ones for all, and gets the sum.
void run_gradient(const Problem& problem, const Context& context);

// Elements of the largest launch, below 2^31: kernels number elements in 32 bits, and a larger
// problem takes several launches. The tests lower it.
extern std::int64_t largest_launch;

}  // namespace robustflow::cuda
