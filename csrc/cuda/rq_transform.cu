#include "cuda/kernels.h"
#include "cuda/rq.h"

void robustflow::cuda::transform_rq(const Problem& problem, int batch_dims, void* logabsdet,
                                    const Context& context) {
  with_rq_op(problem, [&]<class Op>(const Op& op, int num_bins) {
    problem.inverse
        ? run_transform<Op, true>(problem, op, batch_dims, logabsdet, context, num_bins)
        : run_transform<Op, false>(problem, op, batch_dims, logabsdet, context, num_bins);
  });
}
