// Gradients of shared parameters: sums over the elements that share them, in a fixed order.
//
// The elements that share a parameter are divided into slabs. A thread sums over one slab, in
// float64. If there are several slabs, a second kernel (partials.h) adds their sums.
#pragma once

#include "cuda/staged.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

inline constexpr int kBroadcastThreads = 128;

template <class Op>
struct Broadcast {
  Op op;
  Space own, others;  // dimensions of the parameters; dimensions over which they are shared
  Divisor num_own;
  std::uint32_t num_others;
  std::uint32_t slabs, first_slab = 0, all_slabs = 1;  // of this launch; of all launches
  View x[2], gy[2], gl[2], gx[2];  // [0] over `own`, [1] over `others`; only [0].data is used
  View in[Op::kGroups];            // parameters, over `own`
  int column[Op::kGroups];
  int row = 0;                // parameters per element
  int num_gradients = 0;      // those that have a gradient
  int workspace = 0;          // lanes of scratch memory per element
  int threads = 0;            // threads of a block that work
  double* partial = nullptr;  // with several slabs: (num_gradients, own, all_slabs)
  View out[Op::kGroups];      // with one slab: the gradients, over `own`
};

template <class Op>
inline std::int64_t broadcast_bytes(const Broadcast<Op>& p, std::int64_t threads) {
  return threads * (p.num_gradients * std::int64_t(sizeof(double)) +
                    (p.row + p.workspace) * std::int64_t(sizeof(typename Op::Lane)));
}

template <class Op, bool inverse>
ROBUSTFLOW_KERNEL(kBroadcastThreads, 1)
broadcast_gradient(ROBUSTFLOW_PARAMETER Broadcast<Op> p) {
  using V = typename Op::Lane;
  const int t = thread_index(), threads = p.threads;
  // All arrays of a thread have the number of threads as their stride, so that the threads of a
  // warp use different banks.
  double* const sums = shared_memory<double>();
  V* const rows = reinterpret_cast<V*>(sums + threads * p.num_gradients);
  V* const scratch = rows + threads * p.row;
  if (t >= threads) return;
  const StridedPointer<V> row{rows + t, threads}, workspace{scratch + t, threads};
  const Row<Op, StridedPointer<V>> parameters{p.op, row};
  const std::uint32_t work = p.num_own.value * p.slabs;
  for (std::uint32_t i = block_index() * threads + t; i < work; i += grid_blocks() * threads) {
    const std::uint32_t slab = p.num_own.quotient(i), own = i - slab * p.num_own.value;
#pragma unroll
    for (int g = 0; g < Op::kGroups; ++g) {
      if (!p.in[g].data) continue;
      std::int64_t offset = offset_of(p.own, p.in[g], own);
      for (int k = 0; k < p.in[g].num_parameters; ++k, offset += p.in[g].parameter_stride) {
        row[p.column[g] + k] = load_element<V>(p.in[g], offset);
      }
    }
    for (int k = 0; k < p.num_gradients; ++k) sums[k * threads + t] = 0;
    const auto offset = [&](const View(&view)[2], std::uint32_t other) {
      return offset_of(p.own, view[0], own) + offset_of(p.others, view[1], other);
    };
    for (std::uint32_t other = slab; other < p.num_others; other += p.slabs) {
      const V x = load_element<V>(p.x[0], offset(p.x, other));
      const V gy = load_element<V>(p.gy[0], offset(p.gy, other));
      const V gl = load_element<V>(p.gl[0], offset(p.gl, other));
      const V gx = p.op.template gradient<inverse>(
          x, parameters, workspace, gy, gl, [&](int group, int k, V v) {
            sums[(p.op.column(group) + k) * threads + t] += value_of(v);
          });
      store_element(p.gx[0], offset(p.gx, other), gx);
    }
    if (p.partial) {
      for (int k = 0; k < p.num_gradients; ++k) {
        const std::int64_t row = static_cast<std::int64_t>(k) * p.num_own.value + own;
        p.partial[row * p.all_slabs + p.first_slab + slab] = sums[k * threads + t];
      }
      continue;
    }
#pragma unroll
    for (int g = 0; g < Op::kGroups; ++g) {
      if (!p.out[g].data) continue;
      std::int64_t offset = offset_of(p.own, p.out[g], own);
      for (int k = 0; k < p.out[g].num_parameters; ++k, offset += p.out[g].parameter_stride) {
        with_storage<scalar_t<V>>(p.out[g].dtype, [&](auto type) {
          narrow(sums[(p.column[g] + k) * threads + t], *at<decltype(type)>(p.out[g], offset));
        });
      }
    }
  }
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
