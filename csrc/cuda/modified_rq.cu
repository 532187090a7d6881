#include "cuda/launches.h"

namespace robustflow::cuda {

template void transform<ModifiedRqTransform>(const Problem&, int, void*, const Context&);
template void gradient<ModifiedRqTransform>(const Problem&, const Context&);

}  // namespace robustflow::cuda
