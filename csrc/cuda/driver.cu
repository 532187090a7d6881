#include "../order.h"
#include "cuda/driver.h"
#include "cuda/kernels.h"

namespace robustflow::cuda {

void run_transform(const Problem& problem, int batch_dims, void* logabsdet,
                   const Context& context) {
  if (is_empty(problem)) return;  // the caller has zeroed sums over nothing
  switch (problem.transform) {
    case Transform::modified_rq:
      return transform_modified_rq(problem, batch_dims, logabsdet, context);
    case Transform::rq:
      return transform_rq(problem, batch_dims, logabsdet, context);
    case Transform::affine:
      return transform_affine(problem, batch_dims, logabsdet, context);
  }
}

void run_gradient(const Problem& problem, const Context& context) {
  if (is_empty(problem)) return;  // the caller has zeroed gradients of shared parameters
  switch (problem.transform) {
    case Transform::modified_rq:
      return gradient_modified_rq(problem, context);
    case Transform::rq:
      return gradient_rq(problem, context);
    case Transform::affine:
      return gradient_affine(problem, context);
  }
}

}  // namespace robustflow::cuda
