// Runs a problem on the current CUDA device, as csrc/cpu/driver.h does on the CPU.
#pragma once

#include "../problem.h"

namespace robustflow::cuda {

// The stream and the allocator of a call. Kernels are enqueued on `stream` (a cudaStream_t); no
// call waits for them.
struct Context {
  void* stream = nullptr;
  // Allocates device memory for this call's kernels. It stays valid for work enqueued by the call.
  void* (*allocate)(std::int64_t bytes, void* owner) = nullptr;
  void* owner = nullptr;
};

// Computes y and the log-determinant. If batch_dims == dims, the log-determinant is output 1. If
// not, output 1 is null, and `logabsdet` (contiguous, of the compute type) gets sums of it: over
// all dimensions but the first batch_dims. Both functions throw std::runtime_error if CUDA reports
// an error.
void run_transform(const Problem& problem, int batch_dims, void* logabsdet, const Context& context);

// Computes the gradients of x and of the parameters. In dimensions over which parameters are
// shared, their outputs have the stride 0 and get sums. All parameters are shared over the same
// dimensions.
void run_gradient(const Problem& problem, const Context& context);

// The maximal number of elements in a launch, below 2^31, because kernels number elements in 32
// bits. Larger problems take several launches. Tests set it to small numbers.
extern std::int64_t largest_launch;

}  // namespace robustflow::cuda
