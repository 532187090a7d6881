// How a problem is cut into launches: pieces, numberings of their elements, tiles.
#pragma once

#include <vector>

#include "../order.h"
#include "cuda/driver.h"
#include "cuda/staged.h"

namespace robustflow {
inline namespace ROBUSTFLOW_ISA {

// A box of the elements that an order visits, with less than 2^31 of them.
struct Piece {
  Order order;                        // its dimensions, of its sizes
  std::int64_t start[kMaxDims] = {};  // where it begins
  // Its samples: the leading dimensions number them. A piece has whole samples or lies in one.
  std::int64_t samples = 1, length = 1, first_sample = 0;
};
// `batch_dims` of the problem's dimensions number the samples.
std::vector<Piece> pieces_of(const Order& order, int batch_dims);

// An operand over a piece.
View view_of(const Operand& operand, const Piece& piece);
// The same, where the operand may be some planes of another one.
View view_of(const Operand* operands, int index, const Piece& piece);

// Numbers the elements of an order, with as few dimensions as all the views allow; their strides
// come to fit.
Space number(const Order& order, const std::vector<View*>& views);

// Tiles of at most `tile` elements, each within one of the samples of this length.
Tiling tiles_of(std::int64_t samples, std::int64_t length, std::int64_t tile);

// Whether all offsets into a view, in elements, are below 2^32.
bool fits_32_bits(const View& view, const Space& space);

// Whether `width` neighbours of a view lie side by side, aligned for 16-byte accesses.
bool aligned(const View& view, const Space& space, int width);

// Halves `threads` until their shared memory leaves room for a second block; `bytes(n)` is what n of
// them take.
template <class Bytes>
int threads_that_fit(int threads, const Bytes& bytes) {
  const DeviceLimits limits = device_limits();
  const std::int64_t half =
      limits.multiprocessor_shared_bytes / 2 - 1024;  // less what every block takes
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
