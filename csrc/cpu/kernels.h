// The interface of the CPU kernels: blocks of elements in planes, without strides.
//
// The driver (driver.h) cuts a tensor into blocks. A block's operands are planes of contiguous
// elements in the compute type, either the tensor's own memory or a small buffer that the driver
// filled. So a kernel is one loop for every layout and dtype, and an element goes through the same
// instructions wherever it lies.
#pragma once

#include <cstdint>

#include "../transforms.h"

namespace robustflow::cpu {

inline constexpr int kCacheLine = 64;

// A multiple of every pack of every instruction set: the driver's buffers are padded to it.
inline constexpr int kBlockAlign = 64;

template <class T>
struct Planes {
  T* data;
  std::int64_t stride;  // from plane to plane, in elements
};

// Rows that are copied soon; kernels prefetch them while they compute.
struct Prefetch {
  const char* data;
  std::int64_t bytes;  // of an element
  bool for_write;      // copied to, not from
};

template <class T>
struct Block {
  std::int64_t size;  // elements
  Planes<const T> in[kMaxInputs];
  Planes<T> out[kMaxOutputs];
  bool streaming;         // outputs are written past the caches; their planes are aligned to a line
  double* logabsdet_sum;  // transforms without a plane for it add the block's sum here
  int num_prefetches;
  Prefetch prefetches[kMaxInputs + kMaxOutputs];
};

// Strided memory of any dtype, as the driver copies it to and from planes.
struct Strided {
  void* data;
  DType dtype;
  std::int64_t stride;        // from element to element
  std::int64_t plane_stride;  // from plane to plane
  int num_planes;
};

template <class T>
using Kernel = void (*)(const Block<T>&, const void* config);

enum Direction { kForward, kInverse, kForwardGradient, kInverseGradient, kNumDirections };

template <class T>
struct Kernels {
  // A multiple of every pack of this set: planes are read and written up to a multiple of it beyond
  // a block's size, so a block in a tensor's own memory has a multiple of it.
  int lanes;
  Kernel<T> transforms[kNumTransforms][kNumDirections];
  // Copy `size` elements of every plane; rows without gaps may be written by streaming stores.
  void (*load)(const Strided& from, std::int64_t size, T* to, std::int64_t to_stride);
  void (*store)(const T* from, std::int64_t from_stride, std::int64_t size, const Strided& to,
                bool streaming);
  void (*add)(const T* from, std::int64_t size, double* to);
  void (*finish_streaming)();  // before another thread reads streamed data
};

// One for each instruction set.
struct KernelTable {
  Kernels<float> float32;
  Kernels<double> float64;
};

}  // namespace robustflow::cpu
