#include "cuda/launches.h"

namespace robustflow::cuda {

template void transform<AffineTransform>(const Problem&, int, void*, const Context&);
template void gradient<AffineTransform>(const Problem&, const Context&);

}  // namespace robustflow::cuda
