// The transforms' entry points, instantiated in a file of their own each.
#pragma once

#include "cuda/driver.h"

namespace robustflow::cuda {

// `Description` is a transform's (csrc/transforms.h).
template <class Description>
void transform(const Problem& problem, int batch_dims, void* logabsdet, const Context& context);
template <class Description>
void gradient(const Problem& problem, const Context& context);

}  // namespace robustflow::cuda
