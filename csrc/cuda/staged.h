// Kernels for any layout. The parameters of a tile are staged in shared memory, one row per
// element, so that accesses to global memory are coalesced.
#pragma once

#include "cuda/planar.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

inline constexpr int kStagedThreads = 128;

// The layout of a group of parameters in global memory.
enum class Staging : int {
  planar,  // any other: adjacent threads access adjacent elements
  rows,    // an element's parameters are contiguous
  dense,   // the same, and the rows of all elements are contiguous
};

struct Group {
  View view;
  Staging staging = Staging::planar;
  int column = 0;          // the column of its first parameter in a row
  Divisor num_parameters;  // = view.num_parameters
};

// A row in shared memory has `row` numbers; `row` is odd, so that the rows of a warp begin in
// different banks. After the rows of a tile, shared memory holds: the workspaces, a log-determinant
// per element, a sum per warp, and the offsets of the rows in global memory.
template <class Op>
struct Staged {
  Op op;
  Space space;
  Tiling tiling;
  int row = 0, workspace = 0;  // numbers per element
  int offsets_at = 0;          // where the offsets begin, in units of 8 bytes
  View x, y, logabsdet;        // for the backward kernel, y is the gradient of x
  View gy, gl;                 // cotangents
  Group in[Op::kGroups];       // parameters
  Group out[Op::kGroups];      // their gradients
  double* partial = nullptr;   // if not null: one sum of logabsdet per tile
  void* sums = nullptr;        // if not null: one sum per sample; tiles then have whole samples
  int sample = 0;              // elements per sample, if `sums` is not null
};

// offsets_at, and the size of shared memory, for tiles of `tile` elements.
template <class Op>
std::int64_t staged_offsets_at(const Staged<Op>& p, std::int64_t tile) {
  const std::int64_t numbers = tile * (p.row + p.workspace + 1) + kWarp;
  return (numbers * std::int64_t(sizeof(typename Op::Lane)) + 7) / 8;
}
template <class Op>
std::int64_t staged_bytes(const Staged<Op>& p, std::int64_t tile) {
  return (staged_offsets_at(p, tile) + tile) * 8;
}

// Calls move(index in the rows, offset in global memory) for each parameter of a group in the tile,
// except for the first `done`, which the caller has moved.
template <class Op, class Move>
ROBUSTFLOW_DEVICE void for_numbers(const Staged<Op>& p, const Group& group, std::uint32_t begin,
                                   int count, int done, std::int64_t* offsets, Move&& move) {
  const int num_parameters = group.view.num_parameters;
  if (group.staging == Staging::planar) {
    if (thread_index() >= count) return;
    std::int64_t offset = offset_of(p.space, group.view, begin + thread_index());
    for (int k = 0; k < num_parameters; ++k, offset += group.view.parameter_stride) {
      move(thread_index() * p.row + group.column + k, offset);
    }
    return;
  }
  if (group.staging == Staging::rows) {
    barrier();  // before the previous group's offsets are overwritten
    if (thread_index() < count) {
      offsets[thread_index()] = offset_of(p.space, group.view, begin + thread_index());
    }
    barrier();
  }
  for (int i = done + thread_index(); i < count * num_parameters; i += block_threads()) {
    const int r = static_cast<int>(group.num_parameters.quotient(i)), k = i - r * num_parameters;
    const std::int64_t start = group.staging == Staging::rows
                                   ? offsets[r]
                                   : static_cast<std::int64_t>(begin + r) * num_parameters;
    move(r * p.row + group.column + k, start + k);
  }
}

// How many of a group's numbers in a tile can be copied 16 bytes at a time. It is 0 unless rows
// hold nothing but this group, so that global and shared memory have the same contents.
template <class S, class Op>
ROBUSTFLOW_DEVICE int run_length(const Staged<Op>& p, const Group& group, const S* memory,
                                 int count) {
  constexpr int N = sizeof(Words) / sizeof(S);
  if (sizeof(S) == 8 || group.staging != Staging::dense || group.view.num_parameters != p.row)
    return 0;
  if (reinterpret_cast<std::uintptr_t>(memory) % sizeof(Words)) return 0;
  return count * group.view.num_parameters / N * N;
}

// Copies a run of numbers to shared memory. To hide the latency, copies are asynchronous if they
// need no conversion; if not, a thread loads several vectors before it stores the first.
template <class S, class V>
ROBUSTFLOW_DEVICE void load_run(const S* from, V* to, int run) {
  constexpr int N = sizeof(Words) / sizeof(S), kLoadsInFlight = 2;
  const int step = block_threads() * N;
  if constexpr (std::is_same_v<S, scalar_t<V>>) {
    for (int i = thread_index() * N; i < run; i += step) copy_async(to + i, from + i);
  } else {
    for (int first = thread_index() * N; first < run; first += kLoadsInFlight * step) {
      Packed<S, N> packed[kLoadsInFlight];
#pragma unroll
      for (int n = 0; n < kLoadsInFlight; ++n) {
        if (first + n * step < run) packed[n] = Packed<S, N>::load(from + first + n * step);
      }
#pragma unroll
      for (int n = 0; n < kLoadsInFlight; ++n) {
        if (first + n * step >= run) break;
#pragma unroll
        for (int j = 0; j < N; ++j) to[first + n * step + j] = V(value_of(packed[n][j]));
      }
    }
  }
}

// Copies the parameters of `count` elements, from `begin` on, to the rows.
template <class Op, class V>
ROBUSTFLOW_DEVICE void stage(const Staged<Op>& p, std::uint32_t begin, int count, V* rows,
                             std::int64_t* offsets) {
  for (const Group& group : p.in) {
    if (!group.view.data) continue;
    with_storage<scalar_t<V>>(group.view.dtype, [&](auto type) {
      using S = decltype(type);
      const S* from =
          at<const S>(group.view, static_cast<std::int64_t>(begin) * group.view.num_parameters);
      const int run = run_length(p, group, from, count);
      if constexpr (sizeof(S) < 8) load_run(from, rows, run);
      for_numbers(p, group, begin, count, run, offsets, [&](int number, std::int64_t offset) {
        rows[number] = V(widen(*at<const S>(group.view, offset)));
      });
    });
  }
  wait_for_copies();
  barrier();
}

// Copies gradients from the rows to global memory.
template <class Op, class V>
ROBUSTFLOW_DEVICE void unstage(const Staged<Op>& p, std::uint32_t begin, int count, const V* rows,
                               std::int64_t* offsets) {
  barrier();
  for (const Group& group : p.out) {
    if (!group.view.data) continue;
    with_storage<scalar_t<V>>(group.view.dtype, [&](auto type) {
      using S = decltype(type);
      S* to = at<S>(group.view, static_cast<std::int64_t>(begin) * group.view.num_parameters);
      const int run = run_length(p, group, to, count);
      if constexpr (sizeof(S) < 8) {
        constexpr int N = sizeof(Words) / sizeof(S);
        for (int i = thread_index() * N; i < run; i += block_threads() * N) {
          FastFloat v[N];
#pragma unroll
          for (int j = 0; j < N; ++j) v[j] = FastFloat(value_of(rows[i + j]));
          Packed<S, N>::from(v).store(to + i);
        }
      }
      for_numbers(p, group, begin, count, run, offsets, [&](int number, std::int64_t offset) {
        narrow(value_of(rows[number]), *at<S>(group.view, offset));
      });
    });
  }
}

template <class Op, bool inverse, bool gradient>
ROBUSTFLOW_KERNEL(kStagedThreads, Op::kMinBlocksPerMultiprocessor[gradient])
staged(ROBUSTFLOW_PARAMETER Staged<Op> p) {
  using V = typename Op::Lane;
  using T = scalar_t<V>;
  const int capacity = static_cast<int>(p.tiling.tile), t = thread_index();
  V* const rows = shared_memory<V>();
  V* const workspace = rows + capacity * p.row;
  V* const logs = workspace + capacity * p.workspace;
  V* const warps = logs + capacity;
  auto* const offsets = shared_memory<std::int64_t>() + p.offsets_at;
  for (std::uint32_t tile = block_index(); tile < p.tiling.tiles; tile += grid_blocks()) {
    const auto [begin, end] = p.tiling.range(tile);
    const int count = static_cast<int>(end - begin);
    stage(p, begin, count, rows, offsets);
    const Row<Op, V*> row{p.op, rows + t * p.row};
    const StridedPointer<V> element_workspace{workspace + t, capacity};
    V logabsdet(0);
    if (t < count) {
      const std::uint32_t e = begin + t;
      const V x = load_element<V>(p.x, offset_of(p.space, p.x, e));
      if constexpr (gradient) {
        const V gy = load_element<V>(p.gy, offset_of(p.space, p.gy, e));
        const V gl = load_element<V>(p.gl, offset_of(p.space, p.gl, e));
        const V gx = p.op.template gradient<inverse>(
            x, row, element_workspace, gy, gl, [&](int group, int k, V v) { row(group, k) = v; });
        store_element(p.y, offset_of(p.space, p.y, e), gx);
      } else {
        const auto point = p.op.template transform<inverse>(x, row, element_workspace);
        store_element(p.y, offset_of(p.space, p.y, e), point.value);
        logabsdet = p.op.log_slope(row, point.slope);
        if (inverse) logabsdet = V(0) - logabsdet;
        store_element(p.logabsdet, offset_of(p.space, p.logabsdet, e), logabsdet);
      }
    }
    if constexpr (gradient) {
      unstage(p, begin, count, rows, offsets);
    } else if (p.partial) {
      const double sum = block_sum(value_of(logabsdet), reinterpret_cast<T*>(warps));
      if (t == 0) p.partial[tile] = sum;
    } else if (p.sums) {
      // The tile has whole samples, and each warp sums some of them.
      if (t < count) logs[t] = logabsdet;
      barrier();
      const int samples = count / p.sample;
      for (int s = t / kWarp; s < samples; s += block_threads() / kWarp) {
        T sum = 0;
        for (int i = t % kWarp; i < p.sample; i += kWarp) {
          sum += value_of(logs[s * p.sample + i]);
        }
        sum = warp_sum(sum);
        if (t % kWarp == 0) static_cast<T*>(p.sums)[begin / p.sample + s] = sum;
      }
    }
    barrier();
  }
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
