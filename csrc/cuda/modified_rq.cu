#include "cuda/kernels.h"
#include "cuda/launches.h"

namespace robustflow::cuda {
namespace {

// f(op) for the compute type of a problem.
template <class F>
void with_op(const Problem& problem, const F& f) {
  const auto& config = *static_cast<const ModifiedRqConfig*>(problem.config);
  if (problem.wide) {
    f(ModifiedRqOp<double>(config));
  } else {
    f(ModifiedRqOp<Single>(config));
  }
}

}  // namespace

void transform_modified_rq(const Problem& problem, int batch_dims, void* logabsdet,
                           const Context& context) {
  with_op(problem, [&]<class Op>(const Op& op) {
    problem.inverse ? run_transform<Op, true>(problem, op, batch_dims, logabsdet, context)
                    : run_transform<Op, false>(problem, op, batch_dims, logabsdet, context);
  });
}

void gradient_modified_rq(const Problem& problem, const Context& context) {
  with_op(problem, [&](const auto& op) {
    problem.inverse ? run_gradient<true>(problem, op, op, context)
                    : run_gradient<false>(problem, op, op, context);
  });
}

}  // namespace robustflow::cuda
