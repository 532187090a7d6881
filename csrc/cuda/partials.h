// The second pass of a sum: adds the partial sums of the first pass, in a fixed order.
#pragma once

#include "cuda/index.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// A matrix of partial sums, `rows` x `count`. Each row is added up; row parameter * elements +
// element goes to out[element, parameter].
struct Partials {
  const double* partial;
  std::uint32_t rows, count;
  Divisor elements;  // number of elements
  Space space;       // their dimensions
  View out;
};

void add_partials(const Partials& p, Stream stream);

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
