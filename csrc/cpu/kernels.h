// The interface of the CPU kernels, which compute blocks of elements.
//
// BlockRunner (block_runner.h) cuts a problem into blocks. A block's operands are planes. A plane holds
// one number of every element of the block (x, y, one parameter, one gradient), contiguous and in the
// compute type. It is either the tensor's own memory or a small buffer that BlockRunner fills. So one loop serves
// all layouts and dtypes, and the same instructions compute an element wherever it is in memory.
#pragma once

#include <cstdint>

#include "../transforms.h"

namespace robustflow::cpu {

inline constexpr int kCacheLine = 64;

// A multiple of the lanes of every pack of every instruction set. Buffers are padded to it.
inline constexpr int kBlockAlign = 64;

template <class T>
struct Planes {
  T* data;
  std::int64_t stride;  // from plane to plane, in elements
};

// Rows that will be copied after the kernel. The kernel prefetches them while it computes.
struct Prefetch {
  const char* data;
  std::int64_t bytes;  // per element
  bool for_write;      // they are the destination of the copy
};

template <class T>
struct Block {
  std::int64_t size;  // elements
  Planes<const T> in[kMaxInputs];
  Planes<T> out[kMaxOutputs];
  bool streaming;         // use streaming stores; the outputs' planes are aligned to cache lines
  double* logabsdet_sum;  // if out[1] is null: the block's sum is added here
  int num_prefetches;
  Prefetch prefetches[kMaxInputs + kMaxOutputs];
};

// Strided memory of any dtype, which is copied to or from planes.
struct Strided {
  void* data;
  DType dtype;
  std::int64_t stride;        // from element to element, in numbers of `dtype`
  std::int64_t plane_stride;  // from plane to plane
  int num_planes;
};

template <class T>
using Kernel = void (*)(const Block<T>&, const void* config);

enum Direction { kForward, kInverse, kForwardGradient, kInverseGradient, kNumDirections };

template <class T>
struct Kernels {
  // A multiple of the lanes of every pack of this instruction set. Kernels read and write planes up
  // to the next multiple of it after a block's size. So a block that is read or written in place must
  // have a multiple of `lanes` elements.
  int lanes;
  Kernel<T> transforms[kNumTransforms][kNumDirections];
  // Copy `size` elements of every plane. With `streaming`, contiguous rows are written with
  // streaming stores.
  void (*load)(const Strided& from, std::int64_t size, T* to, std::int64_t to_stride);
  void (*store)(const T* from, std::int64_t from_stride, std::int64_t size, const Strided& to,
                bool streaming);
  // to[i] += from[i]
  void (*add)(const T* from, std::int64_t size, double* to);
  void (*finish_streaming)();  // a fence: call it before another thread reads streamed data
};

// One for each instruction set.
struct KernelTable {
  Kernels<float> float32;
  Kernels<double> float64;
};

}  // namespace robustflow::cpu
