// The order in which a device computes the elements of a problem.
#pragma once

#include <algorithm>

#include "problem.h"

namespace robustflow {

// Dimensions from the outermost to the innermost, without those of size 1.
struct Order {
  int dims = 0;
  int dim[kMaxDims];
  std::int64_t size[kMaxDims];
  std::int64_t total = 1;

  void add(const Problem& problem, int d) {
    total *= problem.size[d];
    if (problem.size[d] == 1) return;
    dim[dims] = d;
    size[dims++] = problem.size[d];
  }
};

// The first `fixed` dimensions keep their order; the others are sorted by the strides of the first
// output, the largest first. Dimensions for which keep(d) is false are left out.
template <class Keep>
Order visiting_order(const Problem& problem, int fixed, const Keep& keep) {
  int rest[kMaxDims], count = 0;
  for (int d = fixed; d < problem.dims; ++d) rest[count++] = d;
  const std::int64_t* stride = problem.out[0].stride;
  std::stable_sort(rest, rest + count, [&](int a, int b) { return stride[a] > stride[b]; });
  Order order;
  for (int d = 0; d < fixed; ++d)
    if (keep(d)) order.add(problem, d);
  for (int i = 0; i < count; ++i)
    if (keep(rest[i])) order.add(problem, rest[i]);
  return order;
}
inline Order visiting_order(const Problem& problem, int fixed) {
  return visiting_order(problem, fixed, [](int) { return true; });
}

inline bool is_empty(const Problem& problem) {
  return std::any_of(problem.size, problem.size + problem.dims,
                     [](std::int64_t n) { return n == 0; });
}

}  // namespace robustflow
