#include "cuda/launches.h"

namespace robustflow::cuda {

template void transform<RqTransform>(const Problem&, int, void*, const Context&);

}  // namespace robustflow::cuda
