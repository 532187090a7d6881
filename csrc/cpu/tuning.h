// The constants of the CPU's loops that were chosen for speed, with the measurement for each. Those
// of tasks and blocks also determine the order of additions in sums, and so the last bits of these.
//
// "Zen 5" is the machine of benchmarks/results/foundation-avx512-2-cores.json: two cores of an AMD
// EPYC at 4.35 GHz, with AVX-512 and 48 KB of L1 cache; benchmarks/results/README.md has these
// measurements, and those of the number of registers in each transform's lane (csrc/math).
#pragma once

#include <cstdint>

namespace robustflow::cpu {

using Index = std::int64_t;

// ---- tasks -------------------------------------------------------------------------------------

// How many numbers (x and parameters) a task reads: enough to outweigh its start, few enough to
// balance the threads. Zen 5, K = 8: 640 elements, 4 us at 6.0 ns each.
inline constexpr Index kTaskNumbers = 16384;

// With at least kManyShared shared parameters, each task computes kSharedTask of them. Not
// measured: 512 rows of four parameters are half of a block's bytes in float32, and 2048 are two
// tasks for each of two threads.
inline constexpr Index kManyShared = 2048, kSharedTask = 512;

// With fewer shared parameters, each task sums over one of at most this many slabs of the elements.
// Not measured: it limits the number of threads that can work, and the memory for the sums.
inline constexpr Index kMaxSlabs = 64;

// Samples with fewer elements than this share blocks, and every element's logarithm is computed. A
// longer sample is a product with one logarithm for each position in a lane. Not measured: a lane
// has up to 64 elements, an eighth of this.
inline constexpr Index kShortSample = 512;

// ---- blocks ------------------------------------------------------------------------------------

// The part of the L1 cache for the planes of a block; the rows of the next block are prefetched
// into the rest. Zen 5, K = 8: with 24 KB a call took 1.5 times as long.
inline constexpr Index kBlockBytes = 16384;
// If the innermost dimension is at least this long, no block goes beyond its end, so that blocks
// can be read and written in place. Not measured: with a shorter dimension, such blocks would have
// too few elements to outweigh their start.
inline constexpr Index kLongRun = 256;

// ---- copies ------------------------------------------------------------------------------------

// If a run has fewer elements than this, calling a copy function for each run costs more than
// copying element by element. Zen 5: a gradient whose cotangents are expanded over rows, 304 to 254
// us.
inline constexpr Index kShortRun = 16;
// Broadcast inputs that repeat after at most this many elements are copied into planes once per
// task. Zen 5: a call on 200 x 3 with parameters that the batch shares, 15.1 to 11.2 us.
inline constexpr Index kLongestPeriod = 32;
// Outputs larger than this are written with streaming stores: they would not fit in the cache, and
// a normal store first reads the cache line from memory. Zen 5: forward and backward of the
// modified spline on 16 x 96 x 80 x 80, 24 to 16 ms.
inline constexpr Index kStreamedBytes = Index(32) << 20;
// How far ahead a kernel prefetches planes. It must, because the hardware's prefetcher stops at the
// end of a page. Zen 5: a larger distance, or prefetching into L2, gained nothing.
inline constexpr Index kPrefetchBytes = 1024;

}  // namespace robustflow::cpu
