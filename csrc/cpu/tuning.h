// The constants of the CPU's loops that were chosen for speed, with the measurement for each. Those
// of tasks and blocks also decide in which order sums are added, and so their last bits.
//
// "Zen 5" is the machine of benchmarks/results/foundation-avx512-2-cores.json: two cores of an AMD EPYC
// at 4.35 GHz, with AVX-512 and 48 KB of first-level cache; benchmarks/results/README.md has these
// measurements, and those of the registers of each transform's lane (csrc/math).
#pragma once

#include <cstdint>

namespace robustflow::cpu {

using Index = std::int64_t;

// ---- tasks -------------------------------------------------------------------------------------

// Numbers (x and parameters) of the elements of one task: enough to outweigh its start, few enough
// to balance the threads. Zen 5, K = 8: 640 elements, 4 us at 6.0 ns each.
inline constexpr Index kTaskNumbers = 16384;

// From this many shared parameters on, tasks divide the parameters, with this many in a task. Not
// measured: 512 rows of four parameters are half of a block's bytes in float32, and 2048 are two
// tasks for each of two threads.
inline constexpr Index kManyShared = 2048, kSharedTask = 512;

// The gradients of fewer shared parameters are summed in at most so many slabs of elements. Not
// measured: it bounds the threads that can work, and the memory of the slabs' sums.
inline constexpr Index kMaxSlabs = 64;

// A sample below this is too short for a sum of its own, and blocks span samples. Not measured: such a
// sum takes the logarithms of one lane, of up to 64 elements, an eighth of the logarithms here.
inline constexpr Index kShortSample = 512;

// ---- blocks ------------------------------------------------------------------------------------

// The share of the first-level cache for the planes of a block; the rows of the next block are
// prefetched into the rest. Zen 5, K = 8: with 24 KB a call took 1.5 times as long.
inline constexpr Index kBlockBytes = 16384;
// Blocks end with the innermost dimension if that is at least this long, and can then be read and
// written in place. Not measured: shorter runs would leave blocks with few elements for their start.
inline constexpr Index kLongRun = 256;

// ---- copies ------------------------------------------------------------------------------------

// For runs of fewer elements than this, a call for each run costs more than copying the elements
// one by one. Zen 5: a gradient whose cotangents are expanded over rows, 304 to 254 us.
inline constexpr Index kShortRun = 16;
// Inputs that repeat after at most this many elements are copied into planes once for a task. Zen
// 5: a call on 200 x 3 with parameters that the batch shares, 15.1 to 11.2 us.
inline constexpr Index kLongestPeriod = 32;
// Outputs larger than this are written by streaming stores. They would not fit in the cache, and a
// normal store first reads the cache line from memory. Zen 5: forward and backward of the modified
// spline on 16 x 96 x 80 x 80, 24 to 16 ms.
inline constexpr Index kStreamedBytes = Index(32) << 20;
// How far ahead a kernel prefetches planes: the hardware's prefetcher stops at the end of a page.
// Zen 5: further ahead, and into the second-level cache, gained nothing.
inline constexpr Index kPrefetchBytes = 1024;

}  // namespace robustflow::cpu
