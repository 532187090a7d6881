// Runs a kernel over tensors: cuts them into blocks, shares the blocks out to threads, reduces.
//
// Handles strides, dtypes, broadcasting and order; kernels have the formulas, and the caller has
// torch. Results do not depend on the number of threads, because a tensor is cut by its shape and
// layout alone.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace robustflow::cpu {

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
