#include "cuda/partials.h"
#include "cuda/reduce.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

inline constexpr int kPartialsThreads = 256;

// One warp adds up one row.
ROBUSTFLOW_KERNEL(kPartialsThreads, 4) add_partial_sums(ROBUSTFLOW_PARAMETER Partials p) {
  const std::uint32_t warps = block_threads() / kWarp;
  const std::uint32_t lane = thread_index() % kWarp;
  for (std::uint32_t row = block_index() * warps + thread_index() / kWarp; row < p.rows;
       row += grid_blocks() * warps) {
    double sum = 0;
    const double* partial = p.partial + static_cast<std::int64_t>(row) * p.count;
    for (std::uint32_t i = lane; i < p.count; i += kWarp) sum += partial[i];
    sum = warp_sum(sum);
    if (lane != 0) continue;
    const std::uint32_t parameter = p.elements.quotient(row);
    const std::uint32_t element = row - parameter * p.elements.value;
    store_element(p.out, offset_of(p.space, p.out, element) + parameter * p.out.parameter_stride,
                  sum);
  }
}

void add_partials(const Partials& p, Stream stream) {
  constexpr int kWarps = kPartialsThreads / kWarp;
  launch(add_partial_sums, (p.rows + kWarps - 1) / kWarps, kPartialsThreads, 0, stream, p);
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
