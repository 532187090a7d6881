// The second pass of sums: partial sums of a first pass, added in their order.
#pragma once

#include "cuda/index.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// Row after row of `count` partial sums. Row (plane, element) goes to that place of `out`.
struct Partials {
  const double* partial;
  std::uint32_t rows, count;
  Divisor elements;  // a plane
  Space space;       // the elements
  View out;
};

void add_partials(const Partials& p, Stream stream);

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
