// The entry points of a transform. One .cu file per transform instantiates them.
#pragma once

#include "cuda/driver.h"

namespace robustflow::cuda {

// `Description`: one of csrc/transforms.h.
template <class Description>
void transform(const Problem& problem, int batch_dims, void* logabsdet, const Context& context);
template <class Description>
void gradient(const Problem& problem, const Context& context);

}  // namespace robustflow::cuda
