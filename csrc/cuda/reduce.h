// Sums in a fixed order.
#pragma once

#include "cuda/device.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// The sum over the threads of a warp, returned to each. All threads of the warp must call it.
template <class T>
ROBUSTFLOW_DEVICE T warp_sum(T v) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) v = v + shuffle_xor(v, mask);
  return v;
}

// The sum over the threads of a block, returned to thread 0. The block has whole warps. `shared`
// has one number per warp; it may be used again after the next barrier.
template <class T>
ROBUSTFLOW_DEVICE double block_sum(T v, T* shared) {
  v = warp_sum(v);
  if (thread_index() % kWarp == 0) shared[thread_index() / kWarp] = v;
  barrier();
  double sum = 0;
  if (thread_index() == 0) {
    for (int warp = 0; warp < block_threads() / kWarp; ++warp) sum += shared[warp];
  }
  return sum;
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
