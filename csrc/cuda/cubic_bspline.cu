#include "cuda/launches.h"

namespace robustflow::cuda {

template void transform<CubicBsplineTransform>(const Problem&, int, void*, const Context&);
template void gradient<CubicBsplineTransform>(const Problem&, const Context&);

}  // namespace robustflow::cuda
