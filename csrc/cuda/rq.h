// The K-bin spline's transforms by compute type and number of bins.
#pragma once

#include "cuda/launches.h"

namespace robustflow::cuda {

// The box of all elements, or null where each has its own.
inline const double* box_of(const Problem& problem) {
  const Operand& box = problem.in[operands::rq::kBox];
  return box.on_host ? static_cast<const double*>(box.data) : nullptr;
}

// f(op, num_bins). The usual numbers of bins, in single precision, are known to the compiler.
template <class F>
void with_rq_op(const Problem& problem, const F& f) {
  const auto& config = *static_cast<const RqSplineConfig*>(problem.config);
  const double* box = box_of(problem);
  const int num_bins = config.num_bins;
  if (problem.wide) return f(RqOp<double, 0>(config, box), num_bins);
  switch (num_bins) {
    case 8:
      return f(RqOp<Single, 8>(config, box), num_bins);
    case 10:
      return f(RqOp<Single, 10>(config, box), num_bins);
    case 16:
      return f(RqOp<Single, 16>(config, box), num_bins);
    default:
      return f(RqOp<Single, 0>(config, box), num_bins);
  }
}

}  // namespace robustflow::cuda
