// How a problem is divided into launches (pieces), and a launch into tiles.
#pragma once

#include <vector>

#include "../order.h"
#include "cuda/driver.h"
#include "cuda/staged.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// A part of a problem, for one launch: a range of indices in every dimension. It has fewer than
// 2^31 elements.
struct Piece {
  Order order;                        // the problem's, with the piece's sizes
  std::int64_t start[kMaxDims] = {};  // its first index in every dimension
  // A piece has `samples` whole samples of `length` elements, or `length` elements of one sample.
  std::int64_t samples = 1, length = 1, first_sample = 0;
};
// The leading `batch_dims` dimensions of the problem number the samples.
std::vector<Piece> pieces_of(const Order& order, int batch_dims);

// An operand, restricted to a piece.
View view_of(const Operand& operand, const Piece& piece);
// The same for an operand that may be a part of another one (Operand::part_of).
View view_of(const Operand* operands, int index, const Piece& piece);

// Returns the dimensions of an order, with neighbours merged where the strides of all views allow,
// and adapts the views' strides to the merged dimensions.
Space number(const Order& order, const std::vector<View*>& views);

// Divides samples of this length into tiles of at most `tile` elements.
Tiling tiles_of(std::int64_t samples, std::int64_t length, std::int64_t tile);

// Whether all offsets into a view, in elements, are below 2^32.
bool fits_32_bits(const View& view, const Space& space);

// Whether every group of `width` neighbouring elements of a view is contiguous and aligned for
// 16-byte accesses.
bool aligned(const View& view, const Space& space, int width);

// Halves `threads` until two blocks' shared memory fits on a multiprocessor. `bytes(n)` is what a
// block of n threads needs.
template <class Bytes>
int threads_that_fit(int threads, const Bytes& bytes) {
  const DeviceLimits limits = device_limits();
  // CUDA reserves 1024 bytes per block.
  const std::int64_t half = limits.multiprocessor_shared_bytes / 2 - 1024;
  const std::int64_t max_bytes = half < limits.shared_bytes ? half : limits.shared_bytes;
  while (threads > 1 && bytes(threads) > max_bytes) threads /= 2;
  return threads;
}

template <class T>
T* allocate(const cuda::Context& context, std::int64_t count) {
  return static_cast<T*>(context.allocate(count * std::int64_t(sizeof(T)), context.owner));
}
inline Stream stream_of(const cuda::Context& context) {
  return static_cast<Stream>(context.stream);
}

}  // namespace ROBUSTFLOW_ISA
}  // namespace robustflow
