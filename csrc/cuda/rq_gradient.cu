#include "cuda/launches.h"

namespace robustflow::cuda {

template void gradient<RqTransform>(const Problem&, const Context&);

}  // namespace robustflow::cuda
