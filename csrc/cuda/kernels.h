// The transforms' entry points, one file of kernels each.
#pragma once

#include "cuda/driver.h"

namespace robustflow::cuda {

void transform_modified_rq(const Problem&, int batch_dims, void* logabsdet, const Context&);
void transform_rq(const Problem&, int batch_dims, void* logabsdet, const Context&);
void transform_affine(const Problem&, int batch_dims, void* logabsdet, const Context&);

void gradient_modified_rq(const Problem&, const Context&);
void gradient_rq(const Problem&, const Context&);
void gradient_affine(const Problem&, const Context&);

}  // namespace robustflow::cuda
