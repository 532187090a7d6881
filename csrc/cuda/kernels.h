// Launch the kernels of one transform. The .cu files of a transform instantiate these (rq has two);
// driver.h describes the arguments.
#pragma once

#include "cuda/driver.h"

namespace robustflow::cuda {

// `Description`: a struct that csrc/transforms.h lists.
template <class Description>
void transform(const Problem& problem, int batch_dims, void* logabsdet, const Context& context);
template <class Description>
void gradient(const Problem& problem, const Context& context);

}  // namespace robustflow::cuda
