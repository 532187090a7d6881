#include "cuda/kernels.h"
#include "cuda/rq.h"

void robustflow::cuda::gradient_rq(const Problem& problem, const Context& context) {
  with_rq_op(problem, [&]<class V, int BINS>(const RqOp<V, BINS>& op, int num_bins) {
    const auto& config = *static_cast<const RqSplineConfig*>(problem.config);
    const RqOp<V, 0> any(config, box_of(problem));
    problem.inverse ? run_gradient<true>(problem, op, any, context, num_bins)
                    : run_gradient<false>(problem, op, any, context, num_bins);
  });
}
