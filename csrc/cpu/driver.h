// Runs a problem on the CPU: cuts it into blocks, distributes these to threads, adds up sums.
//
// The driver handles strides, dtypes, broadcasting and the order of elements; kernels have the
// formulas; the caller talks to torch. Blocks depend only on shape and layout, so results do not
// depend on the number of threads.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace robustflow::cpu {

// Calls task(begin, end, context) on ranges that together are [begin, end), possibly in parallel.
using ParallelFor = void (*)(std::int64_t begin, std::int64_t end, std::int64_t grain,
                             void (*task)(std::int64_t, std::int64_t, void*), void* context);

// Computes y and the log-determinant. If batch_dims == dims, the log-determinant is output 1. If
// not, output 1 is null, and `logabsdet` (contiguous, of the compute type) gets sums of it: over
// all dimensions but the first batch_dims.
void run_transform(const Problem& problem, int batch_dims, void* logabsdet, ParallelFor parallel);

// Computes the gradients of x and of the parameters. In dimensions over which parameters are
// shared, their outputs have the stride 0 and get sums. All parameters are shared over the same
// dimensions.
void run_gradient(const Problem& problem, ParallelFor parallel);

}  // namespace robustflow::cpu
